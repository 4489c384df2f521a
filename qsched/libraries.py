"""Other packages: which version is installed, and how to keep them from talking."""

from importlib.metadata import PackageNotFoundError, version


def installed_version(package: str) -> str | None:
    """The installed version of a package, None where it is missing; nothing is imported."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None

"""How large an installation is: packages and megabytes, without and with each extra.

    python -m bench.installation [--json]

Of the packages that are installed here, by the sizes in pip's records and without bytecode. An
extra's row is what it adds to qsched alone; two extras may share packages.
"""

import argparse
from collections.abc import Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from bench.printing import Table, show

ROOT = "qsched"
GPU = ("nvidia-", "cuda-", "triton", "torch")
"""How the names of torch and of what it brings for GPUs begin."""


def needs(name: str, extras: frozenset[str]) -> Iterator[Requirement]:
    """What a package asks for on this machine with these extras."""
    for line in distribution(name).requires or ():
        requirement = Requirement(line)
        marker = requirement.marker
        if marker is None or any(marker.evaluate({"extra": each}) for each in ("", *extras)):
            yield requirement


def closure(extra: str = "") -> dict[str, Distribution]:
    """{name: package} of all that is installed with qsched and an extra, itself left out."""
    found: dict[str, Distribution] = {}
    done: set[tuple[str, frozenset[str]]] = set()
    left = [(ROOT, frozenset({extra} - {""}))]
    while left:
        name, extras = left.pop()
        if (name, extras) in done:
            continue
        done.add((name, extras))
        try:
            found[name] = distribution(name)
        except PackageNotFoundError:  # another one provides it, or it was left out on purpose
            continue
        left += [(canonicalize_name(r.name), frozenset(r.extras)) for r in needs(name, extras)]
    return {name: found[name] for name in found if name != ROOT}


def row(what: str, packages: dict[str, Distribution]) -> dict[str, object]:
    """How many, and their megabytes on disk by the records."""
    sizes = (file.size or 0 for each in packages.values() for file in each.files or ())
    return {"": what, "packages": len(packages), "MB": f"{sum(sizes) / 1e6:,.0f}"}


def rows() -> Table:
    """qsched alone, the share of torch and what it brings, then what each extra adds."""
    alone = closure()
    gpu = {name: each for name, each in alone.items() if name.startswith(GPU)}
    found = [row("qsched alone", alone), row("of that torch, CUDA and Triton", gpu)]
    for extra in sorted(distribution(ROOT).metadata.get_all("Provides-Extra") or ()):
        added = {name: each for name, each in closure(extra).items() if name not in alone}
        found.append(row(f"`{extra}` adds", added))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    show({"installed": rows()}, as_json=parser.parse_args().json)


if __name__ == "__main__":
    main()

"""Files from the Hugging Face hub: fetched once, kept in its cache, and each failure in words.

What was fetched is taken from the cache (`HF_HOME`) without a request, so a machine that has the
files needs no network. Nothing is imported before it is needed.
"""

import os
import socket
from pathlib import Path

from qsched.errors import HubError, causes, first_line


def fetch_file(
    repository: str, name: str, *, revision: str | None = None, dataset: bool = False
) -> Path:
    """The local path of one file of a repository, downloaded where it isn't yet.

    Raises HubError in words: offline, gated, missing, or out of disk.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    kind = "dataset" if dataset else "model"
    try:
        return Path(
            hf_hub_download(
                repository, name, revision=revision, repo_type=kind, local_files_only=True
            )
        )
    except LocalEntryNotFoundError:
        pass
    except (OSError, ValueError) as error:
        raise HubError(explain(error, f"{repository}/{name}")) from error
    if offline():
        raise HubError(explain(None, f"{repository}/{name}"))
    try:
        return Path(hf_hub_download(repository, name, revision=revision, repo_type=kind))
    except (OSError, ValueError) as error:
        raise HubError(explain(error, f"{repository}/{name}")) from error


def cached(repository: str, name: str, revision: str | None = None) -> bool:
    """Whether a file of a model's repository is in the cache."""
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(repository, name, revision=revision), str)


def offline() -> bool:
    """Whether HF_HUB_OFFLINE forbids the network."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def explain(error: BaseException | None, what: str, gigabytes: float | None = None) -> str:
    """Why `what` can't be had, and what to do, in one line. `error`: None where nothing was tried.

    `gigabytes`: the size of the download, where it is known.
    """
    from huggingface_hub import errors as known

    size = f" ({gigabytes:.1f} GB)" if gigabytes else ""
    chain = list(causes(error))

    def caused_by(*kinds: type[BaseException]) -> bool:
        return any(isinstance(cause, kinds) for cause in chain)

    if caused_by(known.GatedRepoError):
        return (
            f"{what} is gated; accept its licence on its page of the hub, then log in "
            "(hf auth login) or set HF_TOKEN"
        )
    if caused_by(known.RevisionNotFoundError):
        return f"{what}: the hub has no such revision; correct it"
    if caused_by(known.RemoteEntryNotFoundError):
        return f"{what}: the repository has no such file; correct its name or the revision"
    if caused_by(known.RepositoryNotFoundError):
        return (
            f"{what} is neither a folder here nor a repository that you can read; correct the "
            "name, or log in (hf auth login) if it is private"
        )
    if offline() or error is None or caused_by(known.OfflineModeIsEnabled):
        return (
            f"{what} is not downloaded{size} and HF_HUB_OFFLINE is set; unset it once, or copy the "
            "hub's cache from another machine (HF_HOME)"
        )
    if caused_by(known.HfHubHTTPError):
        return f"{what}: the hub answers {first_line(chain[0])}"
    if caused_by(ConnectionError, TimeoutError, socket.gaierror, known.LocalEntryNotFoundError):
        return (
            f"{what} is not downloaded{size} and the hub can't be reached "
            f"({first_line(chain[-1])}); connect, or copy the hub's cache from another machine "
            "(HF_HOME)"
        )
    return f"{what}: {first_line(chain[0])}"

"""Files from the Hugging Face hub: fetched once, kept in its cache, and each failure in words.

What was fetched is taken from the cache (`HF_HOME`) without a request, so a machine that has the
files needs no network. Nothing is imported before it is needed.
"""

import glob
import os
import shutil
import socket
import tempfile
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from qsched.errors import HubError, causes, first_line

PATIENCE = 10.0
"""Seconds without an answer after which a server is given up."""


_noted: ContextVar[list[Path] | None] = ContextVar("noted", default=None)


@contextmanager
def noted() -> Iterator[list[Path]]:
    """The files that are handed out while the context lasts, in their order."""
    files: list[Path] = []
    token = _noted.set(files)
    try:
        yield files
    finally:
        _noted.reset(token)


def note(file: Path) -> Path:
    """`file`, which somebody loads: one of those of `noted`, once."""
    files = _noted.get()
    if files is not None and file not in files:
        files.append(file)
    return file


def fetch_file(
    repository: str, name: str, *, revision: str | None = None, dataset: bool = False
) -> Path:
    """The local path of one file of a repository, downloaded where it isn't yet.

    Raises HubError in words: offline, gated, missing, or out of disk.
    """
    from huggingface_hub import hf_hub_download

    what, kind = f"{repository}/{name}", "dataset" if dataset else "model"

    def download(*, cached: bool) -> str:
        return hf_hub_download(
            repository, name, revision=revision, repo_type=kind, local_files_only=cached
        )

    return note(Path(_cached_or_fetched(download, what)))


def fetch_files(repository: str, names: Sequence[str], *, revision: str | None = None) -> Path:
    """The local folder that holds these files of a model's repository. Raises HubError as above."""
    first, *_ = [fetch_file(repository, name, revision=revision) for name in names]
    return first.parent


LAYOUT = ("*.json", "*.txt", "*.model")
"""The files of a diffusers repository that are no weights: configs and tokenizers."""


def fetch_layout(repository: str, *, revision: str | None = None) -> Path:
    """The local folder with the configs and tokenizers of a model's repository, downloaded where
    they aren't yet. Raises HubError as above."""
    from huggingface_hub import snapshot_download

    def download(*, cached: bool) -> str:
        return snapshot_download(
            repository, revision=revision, allow_patterns=list(LAYOUT), local_files_only=cached
        )

    return Path(_cached_or_fetched(download, repository))


def stored_weights(
    repository: str, folder: str, *, revision: str | None = None
) -> dict[str, dict[str, int]]:
    """{safetensors file in a folder of a model's repository: {kind of number: how many}}.

    Only the files' headers are read. Raises HubError in words.
    """
    from huggingface_hub import HfApi

    try:
        _require_answer()
        names = HfApi().list_repo_files(repository, revision=revision)
        wanted = [name for name in names if Path(name).parent == Path(folder)]
        headers = {
            Path(name).name: HfApi().parse_safetensors_file_metadata(
                repository, name, revision=revision
            )
            for name in wanted
            if name.endswith(".safetensors")
        }
        return {
            name: {str(kind): count for kind, count in header.parameter_count.items()}
            for name, header in headers.items()
        }
    except Exception as error:  # its own errors of broken headers have no common class
        raise HubError(explain(error, f"{repository}/{folder}")) from error


def push(repository: str, folder: Path, names: Sequence[str], *, private: bool) -> str:
    """Puts files of a folder into a model's repository in one commit, and nothing else; the address
    of the commit. A repository that isn't there is made. Raises HubError in words."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    if offline():
        raise HubError(f"{repository}: HF_HUB_OFFLINE is set; unset it to push")
    api = HfApi()
    try:
        _require_answer()
        api.create_repo(repository, private=private, exist_ok=True)
        done = api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            allow_patterns=[glob.escape(name) for name in names],
            commit_message="Exported by qsched",
        )
        return str(done.commit_url)
    except HfHubHTTPError as error:
        if error.response.status_code in (401, 403):
            raise HubError(
                f"{repository} can't be written to; log in (hf auth login), or set HF_TOKEN to a "
                "token that may write there"
            ) from error
        raise HubError(explain(error, repository)) from error
    except ConnectionError as error:
        raise HubError(
            f"{repository}: the hub can't be reached ({first_line(error)}); connect, and push again"
        ) from error
    except (OSError, ValueError) as error:
        raise HubError(explain(error, repository)) from error


def fetch_url(url: str, place: Path) -> Path:
    """`place`, where a file that lies elsewhere than on the hub is kept; downloaded where it isn't
    yet. Raises HubError in words."""
    if place.is_file():
        return note(place)
    if offline():
        raise HubError(explain(None, url))
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with (
            urllib.request.urlopen(url, timeout=PATIENCE) as answer,
            tempfile.NamedTemporaryFile(dir=place.parent, delete=False) as unfinished,
        ):
            shutil.copyfileobj(answer, unfinished)
        Path(unfinished.name).rename(place)
    except (OSError, ValueError) as error:
        raise HubError(explain(error, url)) from error
    return note(place)


def _cached_or_fetched(download: Callable[..., str], what: str) -> str:
    """`download(cached=True)` asks nobody; `download(cached=False)` where that finds nothing, and
    where the hub answers at all: its client alone would try for half a minute, file by file."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return download(cached=True)
    except (LocalEntryNotFoundError, FileNotFoundError):
        pass
    except (OSError, ValueError) as error:
        raise HubError(explain(error, what)) from error
    if offline():
        raise HubError(explain(None, what))
    try:
        _require_answer()
        return download(cached=False)
    except (OSError, ValueError) as error:
        raise HubError(explain(error, what)) from error


def _require_answer() -> None:
    """Raises ConnectionError where the hub doesn't answer."""
    from huggingface_hub import constants, get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=PATIENCE)
    except Exception as error:  # whatever the HTTP client raises
        raise ConnectionError(str(error)) from error


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

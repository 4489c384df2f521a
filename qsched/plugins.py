"""Doors: names that stand for code, whoever wrote it. One registry for each kind of thing.

    BACKENDS.find("torchao")             # built in
    BACKENDS.find("theirs")              # an installed package's entry point of the group
    BACKENDS.find("mine:Backend")        # a module that can be imported, or lies beside the study

Built-in things are written down as ``module:name`` too and found by the same code. Nothing is
imported before it is asked for.
"""

import difflib
import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points, packages_distributions, version
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any

from qsched.errors import QschedError, in_one_line

_folder: ContextVar[Path | None] = ContextVar("folder of the study file", default=None)
_allowed: ContextVar[Collection[str] | None] = ContextVar("modules that may be run", default=None)
_others: ContextVar[Collection[str]] = ContextVar("whose code from elsewhere may run", default=())


@contextmanager
def beside(
    folder: str | Path | None,
    allowed: Collection[str] | None = None,
    others: Collection[str] = (),
) -> Iterator[None]:
    """While the context lasts, modules of plug-ins are looked for in `folder` first; in the current
    folder where there is no such one, as on a worker's machine.

    `allowed`: the modules, with what is in them, that a person let run; of no other one a
    ``module:name`` is imported. None: a person wrote the names, so any. `others`: the names, such
    as ``pyiqa:qalign``, of what may run code that it fetches.
    """
    there = Path(folder) if folder and Path(folder).is_dir() else Path()
    tokens = _folder.set(there.resolve()), _allowed.set(allowed), _others.set(others)
    try:
        yield
    finally:
        _folder.reset(tokens[0])
        _allowed.reset(tokens[1])
        _others.reset(tokens[2])


@dataclass(frozen=True)
class Origin:
    """Where a plug-in comes from: what tells one from another of the same name.

    `qualified`: module and name. `package`: that it was installed with, and its version; "" for a
    module of one's own. `digest`: of the source files that were read for it; equal digests mean
    equal code.
    """

    qualified: str
    package: str
    digest: str

    def __str__(self) -> str:
        return " ".join(filter(None, (self.qualified, self.package, self.digest)))


@dataclass(frozen=True)
class Found:
    """What a name stands for. `rest`: what follows the colon of a family's name. `origin`: None for
    what is built in, whose code qsched's own version tells."""

    name: str
    value: Any
    rest: str = ""
    origin: Origin | None = None


class Registry:
    """One kind of thing that study files name.

    `kind`: a noun for errors. `group`: the entry-point group of other packages. `built_in`: {name:
    "module:name"}. `error`: what is raised, in one line, for names that stand for nothing. A name
    may be followed by a colon and more, as in ``pyiqa:musiq``: what it stands for gets the rest.
    `installed`: what other packages offer in a group.
    """

    def __init__(
        self,
        kind: str,
        group: str,
        built_in: Mapping[str, str],
        error: Callable[[str], QschedError],
        *,
        installed: "Callable[[str], Mapping[str, EntryPoint]] | None" = None,
    ) -> None:
        self.kind = kind
        self.group = group
        self.built_in = MappingProxyType(dict(built_in))
        self._error = error
        self._installed = installed or _installed

    def names(self) -> tuple[str, ...]:
        """The names that are built in, then those that installed packages add."""
        return tuple(dict.fromkeys((*self.built_in, *self._installed(self.group))))

    def find(self, name: str, *, fitting: Iterable[str] | None = None) -> Found:
        """What `name` stands for. Raises this registry's error with the names that come near, of
        all or of those that are `fitting` at this place."""
        listed = tuple(self.names() if fitting is None else fitting)
        head, _, rest = name.partition(":")
        for known, after in ((name, ""), (head, rest)):
            if known in self.built_in:
                module, _, attribute = self.built_in[known].partition(":")
                return Found(name, getattr(importlib.import_module(module), attribute), after)
            if known in (offered := self._installed(self.group)):
                return self._offered(name, offered[known], after)
        if is_reference(name):
            return referenced(name, self.kind, self._error, listed)
        raise self._error(f"{name!r} is no {self.kind}; {nearest(name, listed)}")

    def _offered(self, name: str, point: EntryPoint, rest: str) -> Found:
        package = f"{point.dist.name} {point.dist.version}" if point.dist else point.module
        try:
            value = point.load()
        except Exception as error:
            raise self._error(
                f"{self.kind} {name!r} of the installed {package} can't be loaded: "
                f"{in_one_line(error)}"
            ) from error
        origin = Origin(point.value, package, _digest(sys.modules[point.module], set()))
        return Found(name, value, rest, origin)


def referenced(
    name: str, kind: str, error: Callable[[str], QschedError], known: Iterable[str] = ()
) -> Found:
    """What ``module:name`` stands for, the module beside the study file or importable.

    `kind`: a noun for `error`, which is raised in one line for what isn't there; `known`: the names
    that could have been meant.
    """
    module_name, _, attribute = name.partition(":")
    if not may_run(module_name):
        raise error(
            f"{kind} {name!r}: it is the database that names this code; it runs with the study "
            f"file in NAME's place, or with --allow-code {module_name}"
        )
    try:
        module, others = _imported(module_name, _folder.get())
    except ModuleNotFoundError as failure:
        if failure.name != module_name.partition(".")[0]:
            raise error(f"{kind} {name!r}: {in_one_line(failure)}") from failure
        where = f"in {_folder.get()}, nor" if _folder.get() else "that"
        names = f"; {nearest(name, known)}" if known else ", or install it"
        raise error(
            f"{kind} {name!r}: no module {module_name!r} {where} can be imported; put "
            f"{module_name}.py beside the study file{names}"
        ) from failure
    except Exception as failure:
        raise error(f"{kind} {name!r}: importing it failed: {in_one_line(failure)}") from failure
    if not hasattr(module, attribute):
        public = [each for each in vars(module) if not each.startswith("_")]
        near = difflib.get_close_matches(attribute, public, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise error(f"{kind} {name!r}: {module.__file__} has no {attribute!r}{hint}")
    packages = _distributions().get(module_name.partition(".")[0], [])
    package = f"{packages[0]} {version(packages[0])}" if packages else ""
    origin = Origin(name, package, _digest(module, others))
    return Found(name, getattr(module, attribute), origin=origin)


def may_run(module: str) -> bool:
    """Whether a module of one's own may be run here: `beside` says for which study."""
    allowed = _allowed.get()
    return allowed is None or any(f"{module}.".startswith(f"{each}.") for each in allowed)


def may_run_others(name: str) -> bool:
    """Whether something may run code that it fetches, by the name that studies give it."""
    return name in _others.get()


def is_reference(name: str) -> bool:
    """Whether a name is of the form ``module:name``, the module with its packages."""
    module, _, attribute = name.partition(":")
    return all(part.isidentifier() for part in (*module.split("."), attribute))


def nearest(name: str, names: Iterable[str]) -> str:
    """What to say of a name that stands for nothing: those that come near, and all there are."""
    known = tuple(names)
    near = difflib.get_close_matches(name.lower().replace("_", "-"), known, n=2)
    hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
    return f"{hint}expected one of {', '.join(known)}, or module:name"


@cache
def _distributions() -> Mapping[str, list[str]]:
    """The installed distributions by what can be imported of them; it takes a while to look."""
    return packages_distributions()


@cache
def _installed(group: str) -> Mapping[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=group)}


_beside: dict[Path, tuple[ModuleType, set[Path]]] = {}
"""Modules that lie beside study files, by file, with the files beside them that they import."""


def _imported(name: str, folder: Path | None) -> tuple[ModuleType, set[Path]]:
    """The module of this name: the one in `folder`, else any that Python finds."""
    place = folder.joinpath(*name.split(".")) if folder else None
    files = (place.with_suffix(".py"), place / "__init__.py") if place else ()
    file = next((each for each in files if each.is_file()), None)
    if file is None or folder is None:
        return importlib.import_module(name), set()
    if file not in _beside:
        _beside[file] = _executed(name, file, folder)
    return _beside[file]


def _executed(name: str, file: Path, folder: Path) -> tuple[ModuleType, set[Path]]:
    """The file as a module; what it imports may lie beside it as well."""
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    before = set(sys.modules)
    sys.path.insert(0, str(folder))
    sys.modules[name] = module  # what dataclasses and pickles look for
    try:
        spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(name, None)
        raise
    finally:
        sys.path.remove(str(folder))
    return module, {
        Path(source)
        for each in set(sys.modules) - before
        if (source := getattr(sys.modules[each], "__file__", None))
        and folder in Path(source).parents
    }


def _digest(module: ModuleType, others: set[Path]) -> str:
    """Of the module's source, of its whole package where it is one, and of `others`."""
    own = Path(inspect.getsourcefile(module) or str(module.__file__))
    files = set(own.parent.rglob("*.py")) if own.name == "__init__.py" else {own}
    digest = hashlib.blake2b(digest_size=8)
    for path in sorted(files | others):
        digest.update(f"{path.name}:{path.stat().st_size};".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()

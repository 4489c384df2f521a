"""What the classes of diffusers take, read from their source: no import, so no torch.

source = of_diffusers("StableDiffusionXLPipeline")
source.parameters("__call__")["original_size"].kinds      # {"tuple", "None"}
source.parameters("__call__").get("negative_promt")       # None: it takes no such thing
"""

import ast
import inspect
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache, cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

_CLASS = re.compile(rb"^class (\w+)", re.MULTILINE)

_OF_VALUE: tuple[tuple[type, frozenset[str]], ...] = (
    (bool, frozenset({"bool"})),
    (int, frozenset({"int", "float"})),
    (float, frozenset({"float"})),
    (str, frozenset({"str"})),
    (list, frozenset({"list", "tuple"})),
    (tuple, frozenset({"list", "tuple"})),
    (dict, frozenset({"dict"})),
)
"""What an annotation says of each type that a study file can hold."""

_EVALUATED = {"len": len, "getattr": getattr, "hasattr": hasattr}
"""What an expression of diffusers may call where it is evaluated."""

_PLAIN = frozenset({"None"}).union(*(kinds for _, kinds in _OF_VALUE))


@dataclass(frozen=True)
class Parameter:
    """A parameter as it is declared.

    `kinds`: the types of its annotation, outermost names, "None" among them; empty without one.
    `choices`: the strings that the class tells apart; empty where any will do. `default`: None
    where it has none, or one that is no plain value. `required`: it has none.
    """

    name: str
    kinds: frozenset[str] = frozenset()
    choices: frozenset[str] = frozenset()
    default: Any = None
    required: bool = False

    def expects(self, value: Any) -> str | None:
        """What it expects instead of a value that can't be right; None where it may be."""
        if isinstance(value, str) and self.choices:
            known = sorted(self.choices)
            return None if value in known else f"one of {', '.join(map(repr, known))}"
        if not self.kinds or self.kinds - _PLAIN:
            return None
        fitting = next((kinds for kind, kinds in _OF_VALUE if isinstance(value, kind)), _PLAIN)
        return None if self.kinds & fitting else " or ".join(sorted(self.kinds - {"None"}))


@dataclass(frozen=True)
class ClassSource:
    """A class with those that it inherits from, nearest first, as far as their source is there."""

    name: str
    bodies: tuple[ast.ClassDef, ...]

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The names of the class and of those that it inherits from."""
        return tuple(body.name for body in self.bodies)

    def methods(self, name: str) -> Iterator[ast.FunctionDef]:
        """The methods of this name, the one that is called first."""
        for body in self.bodies:
            for each in body.body:
                if isinstance(each, ast.FunctionDef) and each.name == name:
                    yield each

    def parameters(self, method: str) -> Mapping[str, Parameter]:
        """What may be passed to a method by name; empty where it isn't known.

        What `**kwargs` swallows counts where the code reads it by name, or passes it on to the
        method that it overrides.
        """
        found: dict[str, Parameter] = {}
        for function in self.methods(method):
            arguments = function.args
            listed = [*arguments.posonlyargs, *arguments.args][1:]
            missing = [None] * (len(listed) - len(arguments.defaults))
            defaults = [*missing, *arguments.defaults][-len(listed) or len(arguments.defaults) :]
            pairs = [
                *zip(listed, defaults, strict=True),
                *zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True),
            ]
            for argument, default in pairs:
                found.setdefault(argument.arg, self._parameter(argument, default))
            rest = arguments.kwarg.arg if arguments.kwarg else None
            if rest is None:
                return found
            read = _read_by_name(function, rest)
            found = {name: Parameter(name) for name in read} | found
            if not _passed_on(function, rest):
                return found
        return found

    def constant(self, name: str) -> Any:
        """The plain value of an attribute of the class; None where it has none."""
        for body in self.bodies:
            for each in body.body:
                if isinstance(each, ast.Assign) and name in map(ast.unparse, each.targets):
                    return _plain(each.value)
        return None

    def reads(self, name: str) -> bool:
        """Whether the code of the class reads a setting, as an attribute, a variable or a key."""
        return any(name in _read_in(body) for body in self.bodies)

    @cached_property
    def told_apart(self) -> Mapping[str, frozenset[str]]:
        """{name of a variable or attribute: the strings that the code compares it with}."""
        found: dict[str, frozenset[str]] = {}
        for body in self.bodies:
            for name, strings in _told_apart(body).items():
                found[name] = found.get(name, frozenset()) | strings
        return found

    def _parameter(self, argument: ast.arg, default: ast.expr | None) -> Parameter:
        kinds, choices = _kinds(argument.annotation)
        value = _plain(default)
        if not choices and "str" in kinds and (compared := self.told_apart.get(argument.arg)):
            choices = compared | ({value} if isinstance(value, str) else set())
        return Parameter(argument.arg, kinds, choices, value, required=default is None)


@cache
def of_diffusers(name: str) -> ClassSource | None:
    """A pipeline or scheduler class of diffusers; None where there is none of this name."""
    bodies = list(_inherited(name))
    return ClassSource(name, tuple(bodies)) if bodies else None


def names_in_diffusers(ending: str) -> list[str]:
    """The classes that there are, such as those that end in "Pipeline"; none without diffusers."""
    return sorted(name for name in _files() if name.endswith(ending))


def of_class(kind: type) -> ClassSource:
    """Any class that was imported."""
    bodies = []
    for each in kind.__mro__:
        try:
            file = inspect.getsourcefile(each)
        except (TypeError, OSError):
            continue
        body = _classes(Path(file)).get(each.__name__) if file else None
        if body is not None:
            bodies.append(body)
    return ClassSource(kind.__name__, tuple(bodies))


def _inherited(name: str, file: Path | None = None) -> Iterator[ast.ClassDef]:
    """The class and those it inherits from, depth first; bases in its own file come first."""
    if file is None or name not in _classes(file):
        file = _files().get(name)
    if file is None:
        return
    body = _classes(file)[name]
    yield body
    for base in body.bases:
        yield from _inherited(ast.unparse(base).rpartition(".")[2], file)


@cache
def _files() -> Mapping[str, Path]:
    """{class: its file} of diffusers' pipelines and schedulers."""
    spec = find_spec("diffusers")
    if spec is None or spec.origin is None:
        return {}
    root = Path(spec.origin).parent
    files = [*root.glob("schedulers/**/*.py"), *root.glob("pipelines/**/*.py")]
    return {
        found.decode(): file
        for file in sorted(files, reverse=True)
        for found in _CLASS.findall(file.read_bytes())
    }


@cache
def _told_apart(body: ast.ClassDef) -> Mapping[str, frozenset[str]]:
    found: dict[str, set[str]] = {}
    for node in ast.walk(body):
        if isinstance(node, ast.Compare) and len(node.ops) == 1:
            name = getattr(node.left, "attr", getattr(node.left, "id", None))
            found.setdefault(str(name), set()).update(_strings(node.comparators[0]))
    return {name: frozenset(strings) for name, strings in found.items()}


@cache
def _read_in(body: ast.ClassDef) -> frozenset[str]:
    found = set()
    for node in ast.walk(body):
        if isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            found.add(node.id)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.add(node.value)
    return frozenset(found)


@cache
def _classes(file: Path) -> Mapping[str, ast.ClassDef]:
    tree = ast.parse(file.read_bytes())
    within = (node for top in tree.body for node in (top, *getattr(top, "body", ())))
    return {node.name: node for node in within if isinstance(node, ast.ClassDef)}


def _kinds(annotation: ast.expr | None) -> tuple[frozenset[str], frozenset[str]]:
    """The outermost types that an annotation names, and the strings of a Literal."""
    if annotation is None:
        return frozenset(), frozenset()
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        return _kinds(ast.parse(annotation.value, mode="eval").body)
    if isinstance(annotation, ast.BinOp):
        parts = [annotation.left, annotation.right]
    elif isinstance(annotation, ast.Subscript):
        outer = ast.unparse(annotation.value).rpartition(".")[2].lower()
        inner = annotation.slice
        parts = list(inner.elts) if isinstance(inner, ast.Tuple) else [inner]
        if outer == "literal":
            return frozenset({"str"}), frozenset(_strings(ast.List(elts=parts)))
        if outer not in ("optional", "union"):
            return frozenset({outer}), frozenset()
        if outer == "optional":
            parts.append(ast.Constant(None))
    else:
        name = ast.unparse(annotation).rpartition(".")[2]
        return frozenset({name}), frozenset()
    both = [_kinds(part) for part in parts]
    return (
        frozenset().union(*(kinds for kinds, _ in both)),
        frozenset().union(*(choices for _, choices in both)),
    )


def _strings(node: ast.expr) -> set[str]:
    """The strings in a constant, or in a list of constants."""
    elements = node.elts if isinstance(node, ast.List | ast.Tuple | ast.Set) else [node]
    return {
        each.value
        for each in elements
        if isinstance(each, ast.Constant) and isinstance(each.value, str)
    }


def _plain(node: ast.expr | None) -> Any:
    try:
        return ast.literal_eval(node) if node is not None else None
    except ValueError:
        return None


def _read_by_name(function: ast.FunctionDef, mapping: str) -> set[str]:
    """The keys that a function reads of its `**mapping`."""
    found = set()
    for node in ast.walk(function):
        if isinstance(node, ast.Call) and node.args:
            if ast.unparse(node.func) in (f"{mapping}.get", f"{mapping}.pop"):
                found |= _strings(node.args[0])
        elif isinstance(node, ast.Subscript) and ast.unparse(node.value) == mapping:
            found |= _strings(node.slice)
    return found


def _passed_on(function: ast.FunctionDef, mapping: str) -> bool:
    """Whether a function hands its `**mapping` to the method that it overrides."""
    return any(
        isinstance(node, ast.Call)
        and ast.unparse(node.func) == f"super().{function.name}"
        and any(each.arg is None and ast.unparse(each.value) == mapping for each in node.keywords)
        for node in ast.walk(function)
    )


def evaluated(expression: ast.expr, this: Any) -> Any:
    """The value of an expression of a class's source about `self`; None if it needs what `this`
    doesn't have."""
    code = compile(ast.Expression(expression), "diffusers", "eval")
    try:
        return eval(code, {"__builtins__": {}, "self": this, **_EVALUATED})
    except Exception:  # noqa: BLE001 - whatever it is, it isn't known without the object itself
        return None


def did_you_mean(name: str, known: Iterable[str], otherwise: str = "") -> str:
    """How a sentence ends about a name that a class doesn't have: with the nearest one of `known`,
    or as `otherwise` says."""
    near = get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else otherwise

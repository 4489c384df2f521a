"""A panel drawn by matplotlib, as PNG or as inline SVG that follows the page's colours and font.

It is drawn in the light ones of `LIGHT`. In SVG each of them becomes the variable of the page's
style sheet that has its name, text loses its font, and a point tells what it is where the pointer
rests on it. matplotlib is imported where it is used: a study can be watched without it.
"""

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from xml.etree.ElementTree import Element, SubElement, fromstring, tostring

from markupsafe import Markup

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LIGHT = {
    "page": "#f6f6f4",
    "card": "#ffffff",
    "ink": "#1b1d20",
    "soft": "#575c64",
    "line": "#dfe0e3",
    "faint": "#eeeff1",
    "blue": "#2a66ac",
    "orange": "#b8480b",
    "good": "#19703a",
    "bad": "#b3261e",
    "warn": "#7d5200",
    "calm": "#4d5663",
    "on-badge": "#ffffff",
}
"""The page's colours by day, by the names of its style sheet's variables."""

INKS = ("card", "ink", "soft", "line", "blue", "orange", "bad")
"""Those that figures are drawn in; all different, so that SVG can tell them apart."""

_VARIABLES = {LIGHT[name]: f"var(--{name})" for name in INKS}
_NUMBERED = re.compile(r"(^|[_.])(\d+)$")
"""How matplotlib names what nobody else has named."""

Style = dict[str, Any]
"""matplotlib's words for how something looks."""

LETTERS = 13
"""The size of text, in units; the page sets its own."""


class Layout(NamedTuple):
    """Width and height, the margins around the axes, and how far labels are from the numbers. In
    units that the page scales; in a PNG one is a pixel and a half."""

    wide: int
    high: int
    left: int = 52
    top: int = 28
    right: int = 12
    bottom: int = 44
    pad: int = 8


class Drawing:
    """Axes over the ranges `x` and `y`, without a frame: a label below, and one above on the left.

    `name`: what its ids begin with in the page. `words`: read to the blind. `labels`: of x and y.
    `ticks`: those of x; without them round numbers.
    """

    def __init__(
        self,
        name: str,
        words: str,
        x: tuple[float, float],
        y: tuple[float, float],
        *,
        labels: tuple[str, str],
        layout: Layout,
        ticks: Sequence[float] | None = None,
    ) -> None:
        from matplotlib.figure import Figure

        wide, high, left, top, right, bottom, pad = layout
        self._name, self._words = name, words
        self._tips: dict[str, Sequence[str]] = {}
        self.figure = Figure(figsize=(wide / 72, high / 72), dpi=72)
        inner = (wide - left - right) / wide, (high - top - bottom) / high
        self.axes: Axes = self.figure.add_axes((left / wide, bottom / high, *inner))
        self.axes.set(xlim=_padded(x), ylim=_padded(y), facecolor="none")
        self._plain_axes(ticks)
        self.axes.set_xlabel(labels[0], labelpad=pad, color=LIGHT["ink"], fontsize=LETTERS)
        self.write(labels[1], left - 50, top - 5 - pad)

    def _plain_axes(self, ticks: Sequence[float] | None) -> None:
        from matplotlib.ticker import FixedLocator, MaxNLocator, ScalarFormatter

        axes = self.axes
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0, pad=7, labelsize=LETTERS, labelcolor=LIGHT["soft"])
        axes.grid(axis="y", color=LIGHT["line"], linewidth=1, clip_on=False)
        axes.set_axisbelow(True)
        for axis, given in ((axes.xaxis, ticks), (axes.yaxis, None)):
            rounded = MaxNLocator(nbins=5, steps=[1, 2, 5, 10])
            axis.set_major_locator(FixedLocator(list(given)) if given else rounded)
            plain = ScalarFormatter(useOffset=False)
            plain.set_scientific(False)
            axis.set_major_formatter(plain)

    def write(self, text: str, x: float, y: float, **style: Any) -> None:
        """Text whose base line begins `x` units from the left and `y` from the top."""
        wide, high = self.figure.get_size_inches() * 72
        look: Style = {"color": LIGHT["ink"], "fontsize": LETTERS, "parse_math": False}
        self.figure.text(x / wide, 1 - y / high, text, **(look | style))

    def dots(self, kind: str, points: Sequence[tuple[float, float, str]], **style: Any) -> None:
        """Points and what each of them is. `style`: matplotlib's of `scatter`."""
        if points:
            x, y, tips = zip(*points, strict=True)
            self._tips[kind] = tips
            self.axes.scatter(x, y, gid=kind, clip_on=False, **style)

    def bars(
        self,
        kind: str,
        x: Sequence[float],
        heights: Sequence[float],
        tips: Sequence[str],
        **style: Any,
    ) -> None:
        """Bars from zero and what each of them is. `style`: matplotlib's of `bar`."""
        for at, height, tip in zip(x, heights, tips, strict=True):
            group = f"{kind}-{at}"
            self._tips[group] = [tip]
            self.axes.bar(at, height, gid=group, clip_on=False, **style)

    def line(self, kind: str, x: Sequence[float], y: Sequence[float], **style: Any) -> None:
        """A line through points. `style`: matplotlib's of `plot`."""
        ends: Style = {"solid_capstyle": "butt", "solid_joinstyle": "round", "clip_on": False}
        self.axes.plot(x, y, gid=kind, **(ends | style))

    def level(self, kind: str, y: float, **style: Any) -> None:
        """A line over the whole width."""
        self.line(kind, self.axes.get_xlim(), (y, y), **style)

    def legend(self) -> None:
        """Below the axes, what has a `label` in its style, in a row."""
        look: Style = {"labelcolor": LIGHT["soft"], "fontsize": LETTERS - 2, "frameon": False}
        self.figure.legend(loc="lower left", ncols=5, handletextpad=0.4, columnspacing=1.4, **look)

    def save(self, path: Path) -> None:
        """A PNG."""
        self.figure.savefig(path, format="png", dpi=1.5 * 72, facecolor=LIGHT["card"])

    def svg(self) -> Markup:
        """An <svg> for the page, whose style sheet has the colours under the names of `LIGHT`.

        Points and lines are groups of their kind as class.
        """
        from matplotlib import rc_context

        text = io.StringIO()
        with rc_context({"svg.fonttype": "none"}):
            self.figure.savefig(text, format="svg", transparent=True)
        root = fromstring(text.getvalue())
        _take_off(root)
        for element in root.iter():
            _follow_the_page(element)
        for group in root.iter("g"):
            if tips := self._tips.get(group.get("id", "")):
                _explain(group, tips)
        _rename(root, self._name)
        root.attrib = {
            "viewBox": root.attrib["viewBox"],
            "role": "img",
            "aria-label": self._words,
        }
        return Markup(tostring(root, encoding="unicode"))


def _take_off(root: Element) -> None:
    """Namespaces, which HTML doesn't need, and matplotlib's metadata and style sheet."""
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        element.attrib = {key.rpartition("}")[2]: value for key, value in element.items()}
    for parent in list(root.iter()):
        for child in list(parent):
            styles = child.tag == "defs" and child.find("style") is not None
            if child.tag == "metadata" or styles:
                parent.remove(child)


def _follow_the_page(element: Element) -> None:
    """Colours become the page's variables; the page sets letters, where matplotlib put them."""
    if element.tag == "text":
        element.attrib.pop("transform", None)
    style = element.get("style")
    if style is None:
        return
    parts = (part.partition(": ") for part in style.split("; "))
    kept = {key: _VARIABLES.get(value, value) for key, _, value in parts if "font" not in key}
    element.set("style", ";".join(f"{key}:{value}" for key, value in kept.items()))


def _explain(group: Element, tips: Sequence[str]) -> None:
    """Each point of a group gets its <title>."""
    forms = {path for defs in group.iter("defs") for path in defs}
    points = [each for each in group.iter() if each.tag in ("use", "path") and each not in forms]
    for point, tip in zip(points, tips, strict=True):
        SubElement(point, "title").text = tip


def _rename(root: Element, name: str) -> None:
    """Kinds become classes, and ids are kept where they are needed, as no other figure has them."""
    needed = dict.fromkeys(each.get("href", "").removeprefix("#") for each in root.iter("use"))
    ids = {old: f"{name}-{index}" for index, old in enumerate(needed)}
    for element in root.iter():
        old = element.attrib.pop("id", "")
        if old in ids:
            element.set("id", ids[old])
        elif element.tag == "g" and old and not _NUMBERED.search(old):
            element.set("class", old)
        if element.tag == "use":
            element.set("href", "#" + ids[element.get("href", "").removeprefix("#")])


def _padded(ends: tuple[float, float]) -> tuple[float, float]:
    low, high = ends
    room = 0.06 * (high - low) or 0.05 * max(abs(high), 1e-3)
    return low - room, high + room

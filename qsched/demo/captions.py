"""The caption language of the demo model: what can be said, what was held out, what to confuse.

A caption names one large thing, one small thing with or without a place, or two small things and
how they lie to each other; each thing has a style, and the background has a colour:

    a large flat owl on a pink background
    a small shaded apple at the left on an orange background
    a flat owl above a shaded apple on a teal background

Two kinds of combination are never trained (`Caption.held_out`): one in six of all
(object, style, colour) triples, and one in six of all unordered pairs of objects. Every word is
trained. Neither torch nor any file is touched here.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass, replace
from hashlib import sha256

# Caption word -> the `short_name` of its sprite in the emoji-datasource packages.
SPRITES = {
    "owl": "owl",
    "penguin": "penguin",
    "fox": "fox_face",
    "frog": "frog",
    "panda": "panda_face",
    "tiger": "tiger",
    "lion": "lion_face",
    "pig": "pig",
    "cow": "cow",
    "monkey": "monkey_face",
    "koala": "koala",
    "rabbit": "rabbit",
    "octopus": "octopus",
    "crab": "crab",
    "turtle": "turtle",
    "snail": "snail",
    "butterfly": "butterfly",
    "bee": "bee",
    "ladybug": "ladybug",
    "whale": "whale",
    "chick": "hatched_chick",
    "dinosaur": "t-rex",
    "flamingo": "flamingo",
    "elephant": "elephant",
    "apple": "apple",
    "banana": "banana",
    "pear": "pear",
    "cherry": "cherries",
    "strawberry": "strawberry",
    "pineapple": "pineapple",
    "watermelon": "watermelon",
    "lemon": "lemon",
    "carrot": "carrot",
    "eggplant": "eggplant",
    "avocado": "avocado",
    "burger": "hamburger",
    "pizza": "pizza",
    "doughnut": "doughnut",
    "cupcake": "cupcake",
    "cheese": "cheese_wedge",
    "car": "car",
    "bus": "bus",
    "tractor": "tractor",
    "rocket": "rocket",
    "sailboat": "boat",
    "locomotive": "steam_locomotive",
    "balloon": "balloon",
    "guitar": "guitar",
    "umbrella": "umbrella",
    "key": "key",
    "bell": "bell",
    "crown": "crown",
    "gift": "gift",
    "cactus": "cactus",
    "sunflower": "sunflower",
    "tulip": "tulip",
    "mushroom": "mushroom",
    "tree": "evergreen_tree",
    "football": "soccer",
    "robot": "robot_face",
    "ghost": "ghost",
    "pumpkin": "jack_o_lantern",
    "snowman": "snowman_without_snow",
    "camera": "camera",
    "trophy": "trophy",
    "house": "house",
}
OBJECTS = tuple(SPRITES)
STYLES = ("flat", "shaded")
SIZES = ("small", "large")
POSITIONS = ("left", "right", "top", "bottom")
RELATIONS = ("left of", "right of", "above", "below")
COLOURS = {
    "red": (214, 69, 65),
    "orange": (240, 150, 60),
    "yellow": (247, 220, 95),
    "green": (110, 180, 95),
    "teal": (60, 170, 170),
    "blue": (85, 140, 220),
    "purple": (150, 105, 200),
    "pink": (245, 165, 190),
    "grey": (150, 150, 155),
    "white": (245, 245, 245),
}
HELD_OUT_SHARE = 1 / 6


@dataclass(frozen=True)
class Thing:
    """One object in one style."""

    object: str
    style: str


@dataclass(frozen=True)
class Caption:
    """What a caption says; `str(caption)` is its text and `parse` the inverse.

    `size` and `position` belong to captions of one thing (`position` is empty in the middle, and
    only small things have one), `relation` to captions of two.
    """

    things: tuple[Thing, ...]
    colour: str
    size: str = ""
    position: str = ""
    relation: str = ""

    def __str__(self) -> str:
        words = [f"a {thing.style} {thing.object}" for thing in self.things]
        if self.relation:
            text = f"{words[0]} {self.relation} {words[1]}"
        else:
            place = f" at the {self.position}" if self.position else ""
            text = f"a {self.size} {words[0][2:]}{place}"
        article = "an" if self.colour == "orange" else "a"
        return f"{text} on {article} {self.colour} background"

    @property
    def held_out(self) -> bool:
        """Whether this combination is kept from training; the same on every machine."""
        keys = [f"{thing.object} {thing.style} {self.colour}" for thing in self.things]
        if len(self.things) == 2:
            keys.append(" & ".join(sorted(thing.object for thing in self.things)))
        return any(_chance(key) < HELD_OUT_SHARE for key in keys)


_CAPTION = re.compile(
    r"a (?:(?P<size>small|large) )?(?P<style>\w+) (?P<object>\w+)"
    r"(?: at the (?P<position>\w+)| (?P<relation>left of|right of|above|below)"
    r" a (?P<style2>\w+) (?P<object2>\w+))? on an? (?P<colour>\w+) background"
)


def parse(text: str) -> Caption:
    """The caption that reads `text`; ValueError if no caption does."""
    match = _CAPTION.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is no caption of the demo model")
    part = match.groupdict(default="")
    things = [Thing(part["object"], part["style"])]
    if part["relation"]:
        things.append(Thing(part["object2"], part["style2"]))
    caption = Caption(
        tuple(things), part["colour"], part["size"], part["position"], part["relation"]
    )
    known = (
        str(caption) == text
        and all(thing.object in SPRITES and thing.style in STYLES for thing in things)
        and caption.colour in COLOURS
        and caption.position in ("", *POSITIONS)
        and bool(caption.size) != bool(caption.relation)
        and not (caption.position and caption.size == "large")
    )
    if not known:
        raise ValueError(f"{text!r} is no caption of the demo model")
    return caption


def sample(rng: random.Random) -> Caption:
    """A random caption: 25 % one large thing, 40 % one small one, 35 % two different things."""
    first = Thing(rng.choice(OBJECTS), rng.choice(STYLES))
    colour = rng.choice(tuple(COLOURS))
    kind = rng.random()
    if kind < 0.25:
        return Caption((first,), colour, size="large")
    if kind < 0.65:
        return Caption((first,), colour, size="small", position=rng.choice(("", *POSITIONS)))
    second = Thing(rng.choice([o for o in OBJECTS if o != first.object]), rng.choice(STYLES))
    return Caption((first, second), colour, relation=rng.choice(RELATIONS))


def sample_many(count: int, seed: int, *, held_out: bool) -> list[Caption]:
    """`count` random captions from one side of the split; those held out are all different."""
    rng = random.Random(seed)
    found: dict[Caption, None] = {}
    trained: list[Caption] = []
    while len(found) + len(trained) < count:
        caption = sample(rng)
        if caption.held_out != held_out:
            continue
        if held_out:
            found[caption] = None
        else:
            trained.append(caption)
    return list(found) if held_out else trained


def prompt_lists(calibration: int = 64, held_out: int = 128) -> tuple[list[str], list[str]]:
    """Two disjoint lists of held-out captions: to search on, and to prove the result on."""
    captions = [str(c) for c in sample_many(calibration + held_out, seed=2026, held_out=True)]
    return captions[:calibration], captions[calibration:]


def alternatives(caption: str | Caption) -> dict[str, list[str]]:
    """For each attribute that `caption` names: the captions differing in nothing else.

    The first of each list is the true one, so a scorer that prefers it has the attribute right.
    The attributes are `object`, `style`, `colour`, and `size`, `position` or `relation`. For two
    things, `object` changes one of the two and `style` one or both.
    """
    true = parse(caption) if isinstance(caption, str) else caption
    variants: dict[str, list[Caption]] = {
        "object": [_with_thing(true, i, replace(t, object=o)) for i, t, o in _other_objects(true)],
        "style": _other_styles(true),
        "colour": [replace(true, colour=c) for c in COLOURS if c != true.colour],
    }
    if true.relation:
        others = [r for r in RELATIONS if r != true.relation]
        variants["relation"] = [replace(true, relation=r) for r in others]
    elif true.position:
        others = [p for p in ("", *POSITIONS) if p != true.position]
        variants["position"] = [replace(true, position=p) for p in others]
    else:
        variants["size"] = [replace(true, size=s) for s in SIZES if s != true.size]
    return {name: [str(true), *map(str, others)] for name, others in variants.items()}


def _other_objects(caption: Caption) -> list[tuple[int, Thing, str]]:
    present = {thing.object for thing in caption.things}
    return [
        (index, thing, name)
        for index, thing in enumerate(caption.things)
        for name in OBJECTS
        if name not in present
    ]


def _other_styles(caption: Caption) -> list[Caption]:
    flipped = [
        replace(thing, style=STYLES[1 - STYLES.index(thing.style)]) for thing in caption.things
    ]
    single = [_with_thing(caption, index, thing) for index, thing in enumerate(flipped)]
    return single if len(flipped) == 1 else [*single, replace(caption, things=tuple(flipped))]


def _with_thing(caption: Caption, index: int, thing: Thing) -> Caption:
    things = list(caption.things)
    things[index] = thing
    return replace(caption, things=tuple(things))


def _chance(key: str) -> float:
    """A number in [0, 1) that depends on nothing but `key`."""
    return int.from_bytes(sha256(key.encode()).digest()[:8], "big") / 2**64

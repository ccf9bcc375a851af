"""Descriptions of scenes: true and specific, generic as in captioning data sets, and of the web.

The noise model of raw texts (`raw_text`) is fixed: its shares and phrases were written before any
model was trained on the world. The shares follow what the paper reports of web texts: most say
little of their image, and their mean CLIP similarity is below that of generated captions (0.208
against 0.251).
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from world.drawings import object_classes
from world.scenes import COLOURS, HEAD, Scene, Thing, by_frequency, draw_scene

Kind = Literal["boilerplate", "unrelated", "partial", "specific"]
Names = Literal["specific", "generic"]
COUNTS = {1: "a", 2: "two", 3: "three"}
PLURALS = {
    "person": "people", "sheep": "sheep", "mouse": "mice", "tooth": "teeth", "wolf": "wolves",
    "loaf": "loaves", "potato": "potatoes", "tomato": "tomatoes",
}  # fmt: skip
PAIRS = ("scissors", "sunglasses", "binoculars", "sneakers", "flip flops")

BOILERPLATE = (
    "click to enlarge", "image not available", "free shipping on orders over 50", "home",
    "thumbnail", "add to cart", "read more", "best price guaranteed", "untitled design",
    "page {n} of {m}", "img {n}", "dsc{n}", "photo {n}", "product {n}", "item no {n}",
    "screenshot {n}", "uploaded by user{n}", "share on social media", "sale up to {m} percent off",
    "welcome to our shop", "contact us", "new arrivals {y}", "calendar {y}", "gift card",
    "logo", "banner {n}", "all rights reserved {y}", "sign in to see the price", "slide {m}",
    "picture of the day",
)  # fmt: skip
BEFORE = ("", "", "", "buy ", "vintage ", "free clip art ", "how to draw ", "custom ", "best ")
AFTER = (
    "", "", "", " stock photo", " for sale", " poster", " clip art", " t shirt", " {y}",
    " wallpaper hd", " free download", " in stock", " by artist{m}",
)  # fmt: skip
ADJECTIVES = ("new", "cheap", "lovely", "classic", "handmade", "original", "cute", "modern")


@dataclass(frozen=True)
class Noise:
    """Shares of the kinds of raw texts; they add up to 1.

    `wrong` is the probability that a partial text also names a wrong object or colour.
    """

    boilerplate: float = 0.25
    unrelated: float = 0.20
    partial: float = 0.35
    specific: float = 0.20
    wrong: float = 0.5

    def kinds(self) -> dict[Kind, float]:
        """Return the share of each kind."""
        return {
            "boilerplate": self.boilerplate,
            "unrelated": self.unrelated,
            "partial": self.partial,
            "specific": self.specific,
        }


# Sensitivity checks: noisier and cleaner pools.
NOISES = {
    "usual": Noise(),
    "more": Noise(boilerplate=0.35, unrelated=0.30, partial=0.25, specific=0.10, wrong=0.6),
    "less": Noise(boilerplate=0.15, unrelated=0.10, partial=0.35, specific=0.40, wrong=0.3),
}
SPECIFIC = Noise(boilerplate=0, unrelated=0, partial=0, specific=1)  # of the retrieval test


def description(scene: Scene, random: np.random.Generator, names: Names = "specific") -> str:
    """Return one of the phrasings of all that is true of a scene.

    With names="generic", only objects of the HEAD most frequent classes have their own names, as in
    captioning data sets, others have that of their kind, and the text says less.
    """
    things = [_thing(one, names, random) for one in scene.things]
    if len(things) == 1:
        what = things[0]
    elif random.random() < 0.6:
        what = f"{things[0]} {scene.relation} {things[1]}"
    else:
        what = f"{things[0]} and {things[1]}"
    place = _place(scene.background)
    forms = (
        f"{what} {place}",
        f"{what} {place}",
        f"a picture of {what} {place}",
        f"{what}",
        f"{_bare(place)} with {what}",
    )
    return str(random.choice(forms))


def raw_text(
    scene: Scene, seed: tuple[int, ...], noise: Noise = NOISES["usual"]
) -> tuple[Kind, str]:
    """Return the kind and the text that the web has for a scene."""
    random = np.random.default_rng((*seed, 1))
    shares = noise.kinds()
    kind = tuple(shares)[int(random.choice(len(shares), p=list(shares.values())))]
    if kind == "boilerplate":
        return kind, _filled(str(random.choice(BOILERPLATE)), random)
    if kind == "unrelated":
        return kind, _decorated(_short(_another(scene, (*seed, 2)), random), random)
    if kind == "partial":
        return kind, _decorated(_partial(scene, random, noise.wrong, seed), random)
    return kind, _decorated(description(scene, random), random)


def _thing(thing: Thing, names: Names, random: np.random.Generator) -> str:
    of, is_specific = object_classes()[thing.number], names == "specific"
    name = of.name if is_specific or thing.number in by_frequency()[:HEAD] else of.kind
    says_more = is_specific or random.random() < 0.5
    words = [one for one in (thing.size, thing.colour) if one and says_more]
    noun = name if thing.count == 1 else plural(name)
    if name in PAIRS:
        words, noun = [], " ".join(["pair" if thing.count == 1 else "pairs", "of", *words, name])
    text = " ".join([*words, noun])
    count = COUNTS[thing.count]
    return f"{'an' if count == 'a' and text[0] in 'aeiou' else count} {text}"


def plural(name: str) -> str:
    """Return the plural of a name of classes.csv."""
    for phrase in (" of ", " in "):
        if phrase in name:
            head, _, rest = name.partition(phrase)
            return f"{plural(head)}{phrase}{rest}"
    head, _, last = name.rpartition(" ")
    if last in PLURALS:
        many = PLURALS[last]
    elif last.endswith("fish"):
        many = last
    elif last.endswith("y") and last[-2] not in "aeiou":
        many = f"{last[:-1]}ies"
    elif last.endswith("s") and not last.endswith("ss"):
        many = last
    else:
        many = f"{last}{'es' if last.endswith(('x', 'ch', 'sh', 'ss')) else 's'}"
    return f"{head} {many}".strip()


def counted(name: str) -> str:
    """Return the name as it follows "a": a scissors is a pair of scissors."""
    return f"pair of {name}" if name in PAIRS else name


def _place(background: str) -> str:
    return f"at {background}" if background == "a beach" else f"on {background}"


def _bare(place: str) -> str:
    return place.partition(" ")[2]


def _short(scene: Scene, random: np.random.Generator) -> str:
    """Name the objects of a scene, with one attribute at most."""
    names = [object_classes()[one.number].name for one in scene.things]
    first = scene.things[0]
    word = str(random.choice(["", first.colour, first.size]))
    return " ".join(filter(None, [word, " ".join(names[: int(random.integers(1, 3))])]))


def _partial(scene: Scene, random: np.random.Generator, wrong: float, seed: tuple[int, ...]) -> str:
    """Name one object, its colour and its kind, or the place, perhaps beside something wrong."""
    thing = scene.things[int(random.integers(len(scene.things)))]
    name = object_classes()[thing.number].name
    kind = object_classes()[thing.number].kind
    true = str(
        random.choice(
            [
                name,
                name,
                f"{random.choice(ADJECTIVES)} {name}",
                f"{thing.colour} {kind}".strip(),
                _bare(_place(scene.background)),
            ]
        )
    )
    if random.random() >= wrong:
        return true
    other = _another(scene, (*seed, 3))
    colour = str(random.choice([one for one in COLOURS if one != thing.colour]))
    return str(
        random.choice(
            [
                f"{colour} {true}",
                f"{true} and {object_classes()[other.things[0].number].name}",
                f"{object_classes()[other.things[0].number].name} {true}",
            ]
        )
    )


def _another(scene: Scene, seed: tuple[int, ...]) -> Scene:
    """Draw a scene that has no class in common with `scene`."""
    numbers = {one.number for one in scene.things}
    for attempt in range(1, 1000):
        other = draw_scene((*seed, attempt))
        if numbers.isdisjoint(one.number for one in other.things):
            return other
    raise ValueError(f"no other scene for {seed}")


def _decorated(text: str, random: np.random.Generator) -> str:
    return _filled(f"{random.choice(BEFORE)}{text}{random.choice(AFTER)}", random)


def _filled(text: str, random: np.random.Generator) -> str:
    n, m, y = random.integers((1000, 1, 2005), (9999, 60, 2024))
    return text.replace("{n}", str(n)).replace("{m}", str(m)).replace("{y}", str(y))

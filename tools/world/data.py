"""Pools and evaluation sets of the world, as tars in the form of img2dataset and DataComp."""

import csv
import hashlib
import io
import json
import os
import tarfile
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from world.drawings import object_classes
from world.scenes import (
    HEAD,
    RARE,
    SIDE,
    Scene,
    Thing,
    by_frequency,
    draw_scene,
    frequencies,
    render,
)
from world.texts import NOISES, SPECIFIC, Names, counted, description, raw_text

SHARD = 1000  # samples
QUALITY = 90  # of JPEG
# The first numbers of seeds, so that no image of one part is in another.
POOL, TEST, RETRIEVAL, SCORER, COCO, WEB, GATE = range(7)
TEST_IMAGES = 20  # per class
PAIRS = 1000
TEMPLATES = (
    "a picture of a {c}",
    "a {c}",
    "a big {c}",
    "a small {c} on a meadow",
    "a {c} at a beach",
)
Member = tuple[str, bytes]


def write_pool(folder: Path, shards: int, noise: str = "usual") -> None:
    """Write a pool of `shards` x SHARD samples with raw texts. Shards that exist are kept.

    The metadata of a sample has the truth, for oracles and checks only: `noise` (the kind of the
    raw text), a `true` and a `generic` description, the names of its `objects`, and whether the
    image `is_damaged` (blurred, partly covered or lettered).
    """
    _write_shards(folder, shards, partial(_pool_sample, noise))


def link_pool(source: Path, folder: Path, shards: int) -> None:
    """Make a pool of the first shards of another, as hard links."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(shards):
        name = f"{number:05d}.tar"
        if not (folder / name).exists():
            os.link(source / name, folder / name)


def write_pairs(
    folder: Path, first_seed: int, count: int, names: Sequence[Names] = ("specific",)
) -> None:
    """Write shards of clean pairs; the names in a text are one of `names`, at random."""
    _write_shards(folder, count // SHARD, partial(_clean_sample, first_seed, names))


def write_web(folder: Path, count: int) -> None:
    """Write shards of pairs with raw texts, for models that are pre-trained on the web."""
    _write_shards(folder, count // SHARD, _web_sample)


def write_evalsets(folder: Path) -> None:
    """Write the zero-shot set `world-classes` and two retrieval sets of the same images.

    The texts of `world-pairs` are descriptions, and those of `world-pairs-web` true texts as on the
    web.
    """
    classes, test = object_classes(), folder / "world-classes"
    if not (test / "test/0.tar").exists():
        (test / "test").mkdir(parents=True, exist_ok=True)
        names = [counted(one.name) for one in classes]
        (test / "classnames.txt").write_text("\n".join(names) + "\n", "utf-8")
        templates = "\n".join(TEMPLATES) + "\n"
        (test / "zeroshot_classification_templates.txt").write_text(templates, "utf-8")
        _write_groups(test / "groups.csv")
        numbers = [number for number in range(len(classes)) for _ in range(TEST_IMAGES)]
        scenes = [_single(number, (TEST, i)) for i, number in enumerate(numbers)]
        _write_set(test, scenes, [("cls", str(number).encode()) for number in numbers])
    _write_retrieval(
        folder / "world-pairs",
        lambda scene, seed: description(scene, np.random.default_rng((*seed, 4))),
    )
    _write_retrieval(
        folder / "world-pairs-web", lambda scene, seed: raw_text(scene, seed, SPECIFIC)[1]
    )


def write_gate(folder: Path, count: int = 1000) -> None:
    """Write a pool of held-out images of the HEAD most frequent classes, all equally frequent."""
    if (folder / "00000.tar").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    head = np.zeros(len(object_classes()))
    head[list(by_frequency()[:HEAD])] = 1 / HEAD
    members: list[Member] = []
    for i in range(count):
        scene = draw_scene((GATE, i), head)
        members += _sample(i, _uid(GATE, i), scene, "", {"objects": _objects(scene)})
    _write_tar(folder / "00000.tar", members)


def _write_shards(folder: Path, count: int, sample: Callable[[int], list[Member]]) -> None:
    """Write the shards that are missing, in several processes; `sample` draws one by number."""
    folder.mkdir(parents=True, exist_ok=True)
    wanted = [n for n in range(count) if not (folder / f"{n:05d}.tar").exists()]
    with ProcessPoolExecutor() as processes:
        list(processes.map(partial(_write_shard, folder, sample), wanted))


def _write_shard(folder: Path, sample: Callable[[int], list[Member]], shard: int) -> None:
    numbers = range(shard * SHARD, (shard + 1) * SHARD)
    _write_tar(folder / f"{shard:05d}.tar", (member for i in numbers for member in sample(i)))


def _pool_sample(noise: str, i: int) -> list[Member]:
    seed = (POOL, i)
    scene = draw_scene(seed)
    kind, text = raw_text(scene, seed, NOISES[noise])
    random = np.random.default_rng((*seed, 4))
    truth = {
        "noise": kind,
        "true": description(scene, random),
        "generic": description(scene, random, "generic"),
        "objects": _objects(scene),
        "is_damaged": scene.blurred or scene.occluded or scene.lettered,
    }
    return _sample(i, _uid(noise, *seed), scene, text, truth)


def _clean_sample(first_seed: int, names: Sequence[Names], i: int) -> list[Member]:
    random = np.random.default_rng((first_seed, i, 4))
    scene = draw_scene((first_seed, i))
    text = description(scene, random, names[int(random.integers(len(names)))])
    return _sample(i, _uid(first_seed, i), scene, text)


def _web_sample(i: int) -> list[Member]:
    scene = draw_scene((WEB, i))
    return _sample(i, _uid(WEB, i), scene, raw_text(scene, (WEB, i))[1])


def _objects(scene: Scene) -> list[str]:
    return [object_classes()[one.number].name for one in scene.things]


def _uid(*of: object) -> str:
    return hashlib.md5(repr(of).encode(), usedforsecurity=False).hexdigest()


def _sample(
    number: int, uid: str, scene: Scene, text: str, truth: dict[str, Any] | None = None
) -> list[Member]:
    key = f"{number:09d}"
    about: dict[str, Any] = {"uid": uid, "key": key, "caption": text, "status": "success"}
    about |= {"width": SIDE, "height": SIDE, "original_width": SIDE, "original_height": SIDE}
    about |= truth or {}
    return [
        (f"{key}.jpg", jpeg(scene)),
        (f"{key}.txt", text.encode()),
        (f"{key}.json", json.dumps(about).encode()),
    ]


def jpeg(scene: Scene) -> bytes:
    """Return the image of a scene as JPEG."""
    out = io.BytesIO()
    render(scene).save(out, "JPEG", quality=QUALITY)
    return out.getvalue()


def _single(number: int, seed: tuple[int, ...]) -> Scene:
    """Return a scene of one object of a class, of normal size, and without damage."""
    scene = draw_scene(seed)
    thing = Thing(number, scene.things[0].colour, "", 1)
    return Scene((thing,), "", scene.background, False, False, False, scene.seed)


def _flat() -> np.ndarray:
    """Return probabilities between those of the pool and equal ones."""
    mixed: np.ndarray = (frequencies() + 1 / len(frequencies())) / 2
    return mixed


def _write_groups(path: Path) -> None:
    order, names = by_frequency(), [counted(one.name) for one in object_classes()]
    group = dict.fromkeys(order[:HEAD], "common") | dict.fromkeys(order[-RARE:], "rare")
    with path.open("w", encoding="utf-8", newline="") as lines:
        rows = csv.writer(lines)
        rows.writerow(["class", "group"])
        rows.writerows([names[number], group[number]] for number in sorted(group))


def _write_retrieval(folder: Path, text: Callable[[Scene, tuple[int, ...]], str]) -> None:
    """Write a retrieval set unless it exists; `text` is called with each scene and its seed."""
    if (folder / "test/0.tar").exists():
        return
    (folder / "test").mkdir(parents=True, exist_ok=True)
    (folder / "dataset_type.txt").write_text("retrieval", "utf-8")
    seeds = [(RETRIEVAL, i) for i in range(PAIRS)]
    scenes = [draw_scene(seed, _flat()) for seed in seeds]
    texts = [text(scene, seed) for scene, seed in zip(scenes, seeds, strict=True)]
    _write_set(folder, scenes, [("txt", one.encode()) for one in texts])


def _write_set(folder: Path, scenes: Sequence[Scene], labels: Sequence[Member]) -> None:
    members: list[Member] = []
    for i, (scene, (suffix, label)) in enumerate(zip(scenes, labels, strict=True)):
        members += [(f"s{i:07d}.jpg", jpeg(scene)), (f"s{i:07d}.{suffix}", label)]
    (folder / "test/nshards.txt").write_text("1\n", "utf-8")
    _write_tar(folder / "test/0.tar", members)


def _write_tar(path: Path, members: Iterable[Member]) -> None:
    """Write a tar whose bytes depend only on the members."""
    part = path.with_suffix(".part")
    with tarfile.open(part, "w") as archive:
        for name, data in members:
            about = tarfile.TarInfo(name)
            about.size = len(data)
            archive.addfile(about, io.BytesIO(data))
    part.replace(path)

"""Write small evaluation sets in the layouts of DataComp and CLIP_benchmark."""

import csv
import io
import json
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from samples import Member, image_bytes, tar_bytes

CLASSES = ["cat", "dog", "small bird", "red car", "tree", "house"]
TEMPLATES = ["a photo of a {c}.", "art of {c}"]


def npy(values: Sequence[int]) -> bytes:
    out = io.BytesIO()
    np.save(out, np.array(values, np.int64))
    return out.getvalue()


def write_classification(
    folder: Path,
    labels: Sequence[int],
    classes: Sequence[str] = CLASSES,
    templates: Sequence[str] = TEMPLATES,
    metadata: Sequence[Sequence[int]] | None = None,
    shards: int = 2,
    first_image: int = 0,
) -> Path:
    """Write a set of len(labels) images, distributed over `shards` tars."""
    (folder / "test").mkdir(parents=True)
    (folder / "classnames.txt").write_text("\n".join(classes) + "\n")
    (folder / "zeroshot_classification_templates.txt").write_text("\n".join(templates) + "\n")
    members: list[list[Member]] = [[] for _ in range(shards)]
    for number, label in enumerate(labels):
        here = members[number * shards // len(labels)]
        here.append((f"s{number:07d}.webp", image_bytes(first_image + number, kind="WEBP")))
        here.append((f"s{number:07d}.cls", str(label).encode()))
        if metadata is not None:
            here.append((f"s{number:07d}.npy", npy(metadata[number])))
    _write_tars(folder, members)
    return folder


def write_retrieval(folder: Path, captions: Sequence[Sequence[str]], first_image: int = 0) -> Path:
    (folder / "test").mkdir(parents=True)
    (folder / "dataset_type.txt").write_text("retrieval")
    members = []
    for number, texts in enumerate(captions):
        members.append((f"s{number:07d}.jpg", image_bytes(first_image + number)))
        members.append((f"s{number:07d}.txt", "\n".join(texts).encode()))
    _write_tars(folder, [members])
    return folder


def write_hub_retrieval(folder: Path, captions: Sequence[Sequence[str]]) -> Path:
    """Write the Hub layout of DataComp's Flickr and MSCOCO: a CSV next to a zip."""
    folder.mkdir(parents=True)
    rows = [[f"{n}.jpg", json.dumps(list(texts))] for n, texts in enumerate(captions)]
    _write_csv(folder / "test.csv", [["filename", "raw"], *rows])
    with zipfile.ZipFile(folder / "images.zip", "w") as archive:
        for number in range(len(captions)):
            archive.writestr(f"images_test/{number}.jpg", image_bytes(number))
    return folder


def write_winogavil(
    folder: Path, instances: Sequence[tuple[str, Sequence[str], Sequence[str]]]
) -> Path:
    """Write cues with candidates and associations; each image depends on its name."""
    folder.mkdir(parents=True)
    rows = [[cue, json.dumps(list(some)), json.dumps(list(own))] for cue, some, own in instances]
    _write_csv(folder / "winogavil_dataset.csv", [["cue", "candidates", "associations"], *rows])
    names = sorted({name for _, some, _ in instances for name in some})
    with zipfile.ZipFile(folder / "winogavil_images.zip", "w") as archive:
        for number, name in enumerate(names):
            archive.writestr(f"winogavil_images/{name}.jpg", image_bytes(number))
    return folder


def _write_csv(path: Path, rows: list[list[str]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows(rows)


def _write_tars(folder: Path, shards: list[list[Member]]) -> None:
    (folder / "test/nshards.txt").write_text(str(len(shards)))
    for number, members in enumerate(shards):
        (folder / f"test/{number}.tar").write_bytes(tar_bytes(members))

"""Exports are read correctly by trainers.

The rules of kohya and LLaVA are reimplemented here after sd-scripts 48d368f (library/train_util.py)
and LLaVA's llava/train/train.py.
"""

import json
import os
import re
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from photos import PHOTOS, add_captions, mixed, photo, write_photos
from PIL import Image

from capmix.export.kohya import caption_lines
from capmix.workspace import Workspace

TEXTS = ["a {red|blue} dog", "two\nlines", "{{x}} }{ <image> é"]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Write raw texts of weight 2, and one caption per photo."""
    folder = tmp_path_factory.mktemp("both")
    made = mixed(write_photos(folder / "photos"), folder / "work")
    add_captions(made, folder, TEXTS)
    return made


def lines_of(raw: str, caption: str) -> list[str]:
    return [raw, raw, " ".join(caption.split())]


def kohya_choices(caption: str) -> list[str]:
    """Return all captions that `enable_wildcard` can select: any line, with every choice of {a|b},
    and doubled braces as single ones."""
    found = []
    for line in caption.split("\n"):
        hidden = line.replace("{{", "\0").replace("}}", "\1")
        assert not re.search(r"\{([^}]+)\}", hidden)  # no choices left
        found.append(hidden.replace("\0", "{").replace("\1", "}"))
    return found


def dreambooth(folder: Path, extension: str = ".txt") -> dict[str, str]:
    """Return a folder's own images with the non-blank lines of their caption files."""
    found = {}
    for image in sorted(folder.iterdir()):
        if image.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp", ".bmp"):
            continue
        with open(os.path.splitext(image)[0] + extension, encoding="utf-8") as stream:
            lines = stream.readlines()
        assert lines  # sd-scripts fails on an empty file
        found[image.name] = "\n".join(one.strip() for one in lines if one.strip())
    return found


def test_kohya_takes_each_caption_of_an_image_as_a_line(both: Workspace, tmp_path: Path) -> None:
    out = tmp_path / "out"
    both.export("both", str(out), format="kohya")
    found = {}
    for folder in ("", "trip", "trip/day 1"):
        read = dreambooth(out / folder)
        found |= {f"{folder}/{name}".lstrip("/"): kohya_choices(one) for name, one in read.items()}
    expected = {
        name: lines_of(raw, caption)
        for (name, raw), caption in zip(PHOTOS.items(), TEXTS, strict=True)
    }
    assert found == expected
    metadata = json.loads((out / "metadata.json").read_text("utf-8"))
    for name, about in metadata.items():
        assert (out / name).is_file()  # image_dir joined with the key
        assert kohya_choices(about["caption"]) == expected[name]
    assert metadata.keys() == expected.keys()


def test_kohya_gets_a_line_for_an_empty_text(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").touch()
    (tmp_path / "a.txt").write_text(caption_lines([{"text": " ", "weight": 1}]))
    assert dreambooth(tmp_path) == {"a.jpg": ""}


def test_llava_finds_an_image_and_one_image_token_for_each_entry(
    both: Workspace, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    both.export("both", str(out), format="llava")
    entries = json.loads((out / "llava.json").read_text("utf-8"))
    assert len({one["id"] for one in entries}) == len(entries) == 9
    for entry in entries:
        with Image.open(os.path.join(out, entry["image"])) as image:
            assert image.convert("RGB").size == (40, 30)
        roles = [turn["from"] for turn in entry["conversations"]]
        tokens = [turn["value"].count("<image>") for turn in entry["conversations"]]
        assert (roles, tokens) == (["human", "gpt"], [1, 0])
    answers = [(one["image"], one["conversations"][1]["value"]) for one in entries]
    assert answers == [
        (name, text)
        for (name, raw), caption in zip(PHOTOS.items(), TEXTS, strict=True)
        for text in (raw, raw, caption.replace("<image>", "[image]"))
    ]


def loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *given: Any, **more: Any) -> Any:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return datasets.load_dataset(*given, split="train", **more)


@pytest.mark.parametrize("way", ["directory", "imagefolder"])
def test_imagefolder_has_a_row_for_each_text(
    both: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    out = tmp_path / "out"
    both.export("both", str(out), format="imagefolder")
    names = {"directory": [str(out)], "imagefolder": ["imagefolder"]}[way]
    more = {} if way == "directory" else {"data_dir": str(out / "train")}
    data = loaded(tmp_path, monkeypatch, *names, **more)
    assert [(row["filename"], row["text"]) for row in data] == [
        (name, text)
        for (name, raw), caption in zip(PHOTOS.items(), TEXTS, strict=True)
        for text in (raw, raw, caption)
    ]
    assert {row["image"].size for row in data} == {(40, 30)}
    for number, name in enumerate(PHOTOS):
        assert (out / "train" / name).read_bytes() == photo(number, name)
    assert "caption_c" in pq.read_schema(out / "train/metadata.parquet").names


def test_a_folder_called_test_is_no_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = tmp_path / "photos"
    for number, name in enumerate(("cats/a.jpg", "test/b.jpg", "train/c.jpg")):
        (pool / name).parent.mkdir(parents=True)
        (pool / name).write_bytes(photo(number, name))
        (pool / name).with_suffix(".txt").write_text(name)
    work = mixed(pool, tmp_path / "work")
    work.export("raw", str(tmp_path / "out"), format="imagefolder")
    data = loaded(tmp_path, monkeypatch, str(tmp_path / "out"))
    assert data["text"][:] == ["cats/a.jpg", "test/b.jpg", "train/c.jpg"]

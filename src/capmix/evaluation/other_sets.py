"""Evaluation sets in forms other than WebDataset: a folder of class folders, pairs in parquet, and
the zip with a CSV in which the hub has Flickr, MSCOCO and WinoGAViL for DataComp."""

import csv
import json
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from capmix.errors import UserError
from capmix.evaluation.evalset import (
    CLASSES,
    TEMPLATES,
    Association,
    EvalItem,
    EvalSet,
    files_digest,
    is_webdataset,
    read_lines,
    webdataset_set,
)
from capmix.pool.sample import IMAGE_SUFFIXES, MAX_IMAGE_BYTES

TEMPLATE = "a photo of a {c}."
IMAGE_COLUMNS, TEXT_COLUMNS = ("image", "images", "jpg"), ("captions", "caption", "texts", "text")
MAX_CELL = 1 << 20


def open_evalset(location: str) -> EvalSet:
    """The set at a path, whatever its form. Raises UserError where there is none."""
    path = Path(location)
    if is_webdataset(path):
        return webdataset_set(path)
    if path.suffix == ".parquet" and path.is_file():
        return _pairs_set(path)
    if path.is_dir() and (tables := sorted(path.glob("*.csv"))) and list(path.glob("*.zip")):
        return _zip_set(path, tables[0], sorted(path.glob("*.zip"))[0])
    if path.is_dir() and _class_folders(path):
        return _folders_set(path)
    raise UserError(
        f"evaluation set {location}: not there, or neither test/*.tar, class folders of images, "
        "nor a .parquet file of images and captions"
    )


def _class_folders(root: Path) -> list[Path]:
    folders = sorted(path for path in root.iterdir() if path.is_dir())
    return [folder for folder in folders if any(map(_is_image, folder.iterdir()))]


def _is_image(path: Path) -> bool:
    return path.suffix.lower().removeprefix(".") in IMAGE_SUFFIXES


def _folders_set(root: Path) -> EvalSet:
    """Classes are the folders' names with blanks for `_`, or the lines of classnames.txt."""
    folders = _class_folders(root)
    images = [sorted(filter(_is_image, folder.iterdir())) for folder in folders]
    classes = [folder.name.replace("_", " ") for folder in folders]
    if (root / CLASSES).exists():
        classes = read_lines(root / CLASSES)
        if len(classes) != len(folders):
            raise UserError(f"{root / CLASSES}: {len(classes)} names for {len(folders)} folders")
    templates = read_lines(root / TEMPLATES) if (root / TEMPLATES).exists() else [TEMPLATE]

    def items() -> Iterator[EvalItem]:
        for label, paths in enumerate(images):
            for path in paths:
                yield EvalItem(str(path.relative_to(root)), _bytes(path), label)

    told = [path for paths in images for path in paths]
    lists = [root / name for name in (CLASSES, TEMPLATES) if (root / name).exists()]
    digest = files_digest(root, [*told, *lists])
    return EvalSet(root.name, "classification", digest, items, classes, templates)


def _bytes(path: Path) -> bytes:
    if path.stat().st_size > MAX_IMAGE_BYTES:
        raise UserError(f"evaluation set: {path} is over {MAX_IMAGE_BYTES} bytes")
    return path.read_bytes()


def _pairs_set(path: Path) -> EvalSet:
    """A column of images (bytes, or Hugging Face's struct with `bytes`) and one of captions."""
    try:
        names = pq.read_schema(path).names
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"evaluation set {path}: {error}") from error
    image = next((name for name in IMAGE_COLUMNS if name in names), None)
    text = next((name for name in TEXT_COLUMNS if name in names), None)
    if image is None or text is None:
        raise UserError(
            f"evaluation set {path}: expected a column {'/'.join(IMAGE_COLUMNS)} and one "
            f"{'/'.join(TEXT_COLUMNS)}, found {', '.join(names)}"
        )

    def items() -> Iterator[EvalItem]:
        try:
            with pq.ParquetFile(path) as file:
                rows = (
                    row
                    for batch in file.iter_batches(256, columns=[image, text])
                    for row in batch.to_pylist()
                )
                for number, row in enumerate(rows):
                    yield _pair(f"evaluation set {path}, row {number}", row[image], row[text])
        except (OSError, pa.ArrowException) as error:
            raise UserError(f"evaluation set {path}: {error}") from error

    return EvalSet(path.stem, "retrieval", files_digest(path.parent, [path]), items)


def _pair(where: str, image: Any, texts: Any) -> EvalItem:
    data = image.get("bytes") if isinstance(image, dict) else image
    captions = [texts] if isinstance(texts, str) else texts
    if not isinstance(data, bytes) or not captions or not isinstance(captions, list):
        raise UserError(f"{where}: expected image bytes and one caption or a list of them")
    return EvalItem(where.rpartition(" ")[2], data, texts=tuple(str(one) for one in captions))


def _zip_set(root: Path, table: Path, archive: Path) -> EvalSet:
    """`filename` and `raw` (captions as JSON): retrieval. `cue`, `candidates` and `associations`
    (names of images without .jpg, as JSON): association."""
    csv.field_size_limit(MAX_CELL)
    try:
        with table.open(encoding="utf-8", newline="") as stream:
            rows = list(csv.DictReader(stream, restval=""))
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"evaluation set {table}: {error}") from error
    columns = set(rows[0]) if rows else set()
    digest = files_digest(root, [table, archive])
    if {"filename", "raw"} <= columns:
        texts = {row["filename"]: _strings(table, row["raw"]) for row in rows}

        def pairs() -> Iterator[EvalItem]:
            for name, data in _zip_members(archive, list(texts)):
                yield EvalItem(name, data, texts=tuple(texts[name]))

        return EvalSet(root.name, "retrieval", digest, pairs)
    if {"cue", "candidates", "associations"} <= columns:
        found = [
            Association(
                row["cue"],
                tuple(_strings(table, row["candidates"])),
                tuple(_strings(table, row["associations"])),
            )
            for row in rows
        ]
        names = list(dict.fromkeys(name for one in found for name in one.candidates))

        def images() -> Iterator[EvalItem]:
            for name, data in _zip_members(archive, [f"{name}.jpg" for name in names]):
                yield EvalItem(name.removesuffix(".jpg"), data)

        return EvalSet(root.name, "association", digest, images, associations=found)
    raise UserError(
        f"evaluation set {table}: expected columns filename and raw, or cue, candidates and "
        f"associations; found {', '.join(sorted(columns)) or 'none'}"
    )


def _strings(table: Path, cell: str) -> list[str]:
    try:
        value = json.loads(cell)
    except ValueError as error:
        raise UserError(f"evaluation set {table}: {cell!r:.60} is no JSON list") from error
    if not isinstance(value, list) or not value or not all(isinstance(x, str) for x in value):
        raise UserError(f"evaluation set {table}: {cell!r:.60} is no list of texts")
    return value


def _zip_members(archive: Path, names: list[str]) -> Iterator[tuple[str, bytes]]:
    """Members by the last part of their paths, in the order of `names`; read in memory alone."""
    try:
        with zipfile.ZipFile(archive) as file:
            places = {info.filename.rpartition("/")[2]: info for info in file.infolist()}
            for name in names:
                if name not in places:
                    raise UserError(f"evaluation set {archive}: no image {name} in it")
                if places[name].file_size > MAX_IMAGE_BYTES:
                    raise UserError(f"evaluation set {archive}: {name} is too large")
                yield name, file.read(places[name])
    except (OSError, zipfile.BadZipFile, zlib.error, RuntimeError, NotImplementedError) as error:
        raise UserError(f"evaluation set {archive}: {error}. Fetch it again.") from error

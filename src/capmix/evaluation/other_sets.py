"""Evaluation sets in formats other than WebDataset.

Supports a folder of class folders, a Parquet file of image-caption pairs, and a zip file with a CSV
file, which is the format of DataComp's Flickr, MSCOCO and WinoGAViL on the Hub.
"""

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
from capmix.evaluation.classes import read_groups
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
    """Open the set at a path, in any supported format. Raises UserError if there is none."""
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
        f"evaluation set {location}: not found, or not a supported format (test/*.tar, class "
        "folders of images, a .parquet file of images and captions, or a .zip and a .csv file)"
    )


def _class_folders(root: Path) -> list[Path]:
    folders = sorted(path for path in root.iterdir() if path.is_dir())
    return [folder for folder in folders if any(map(_is_image, folder.iterdir()))]


def _is_image(path: Path) -> bool:
    return path.suffix.lower().removeprefix(".") in IMAGE_SUFFIXES


def _folders_set(root: Path) -> EvalSet:
    """Open a folder of class folders.

    Classes are the lines of classnames.txt, or the folder names with spaces for `_`.
    """
    folders = _class_folders(root)
    images = [sorted(filter(_is_image, folder.iterdir())) for folder in folders]
    classes = [folder.name.replace("_", " ") for folder in folders]
    if (root / CLASSES).exists():
        classes = read_lines(root / CLASSES)
        if len(classes) != len(folders):
            raise UserError(
                f"{root / CLASSES}: expected {len(folders)} names, one per class folder, found "
                f"{len(classes)}"
            )
    templates = read_lines(root / TEMPLATES) if (root / TEMPLATES).exists() else [TEMPLATE]

    def items() -> Iterator[EvalItem]:
        for label, paths in enumerate(images):
            for path in paths:
                yield EvalItem(str(path.relative_to(root)), _bytes(path), label)

    files = [path for paths in images for path in paths]
    lists = [root / name for name in (CLASSES, TEMPLATES) if (root / name).exists()]
    digest = files_digest(root, [*files, *lists])
    groups = read_groups(root, classes)
    return EvalSet(root.name, "classification", digest, items, classes, templates, groups=groups)


def _bytes(path: Path) -> bytes:
    if path.stat().st_size > MAX_IMAGE_BYTES:
        raise UserError(f"evaluation set: {path} is larger than {MAX_IMAGE_BYTES} bytes")
    return path.read_bytes()


def _pairs_set(path: Path) -> EvalSet:
    """Open a Parquet file. Images are bytes, or Hugging Face's structs with `bytes`."""
    try:
        names = pq.read_schema(path).names
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"evaluation set {path}: {error}") from error
    image = next((name for name in IMAGE_COLUMNS if name in names), None)
    text = next((name for name in TEXT_COLUMNS if name in names), None)
    if image is None or text is None:
        raise UserError(
            f"evaluation set {path}: expected a column {' or '.join(IMAGE_COLUMNS)} and a "
            f"column {' or '.join(TEXT_COLUMNS)}; found {', '.join(names)}"
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
        raise UserError(f"{where}: expected image bytes, and a caption or a list of captions")
    return EvalItem(where.rpartition(" ")[2], data, texts=tuple(str(one) for one in captions))


def _zip_set(root: Path, table: Path, archive: Path) -> EvalSet:
    """Open a zip file of images with a CSV file.

    Retrieval sets have the columns `filename` and `raw` (JSON list of captions). Association sets
    have `cue`, and `candidates` and `associations` (JSON lists of image names without .jpg).
    """
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
        raise UserError(f"evaluation set {table}: {cell!r:.60} is not a JSON list") from error
    if not isinstance(value, list) or not value or not all(isinstance(x, str) for x in value):
        raise UserError(f"evaluation set {table}: {cell!r:.60} is not a list of strings")
    return value


def _zip_members(archive: Path, names: list[str]) -> Iterator[tuple[str, bytes]]:
    """Yield members by file name in the order of `names`. Nothing is extracted to disk."""
    try:
        with zipfile.ZipFile(archive) as file:
            places = {info.filename.rpartition("/")[2]: info for info in file.infolist()}
            for name in names:
                if name not in places:
                    raise UserError(f"evaluation set {archive}: image {name} is missing")
                if places[name].file_size > MAX_IMAGE_BYTES:
                    raise UserError(
                        f"evaluation set {archive}: {name} is larger than {MAX_IMAGE_BYTES} bytes"
                    )
                yield name, file.read(places[name])
    except (OSError, zipfile.BadZipFile, zlib.error, RuntimeError, NotImplementedError) as error:
        raise UserError(f"evaluation set {archive}: {error}. Download it again.") from error

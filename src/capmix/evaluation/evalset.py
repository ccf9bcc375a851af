"""Evaluation sets: DataComp's and CLIP_benchmark's WebDataset layout, and others of one's own.

A WebDataset set is a folder with `test/*.tar`. For classification it has `classnames.txt`,
`zeroshot_classification_templates.txt` (`{c}` is the class), and a `.cls` member beside each image,
for WILDS and fairness sets a `.npy` of metadata too. For retrieval `dataset_type.txt` says
`retrieval` and a `.txt` member holds one caption a line. The other forms are in other_sets.py.
"""

import hashlib
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from capmix.errors import UserError
from capmix.pool.sample import IMAGE_SUFFIXES
from capmix.pool.tar_groups import BrokenTarError, TarGroup, tar_groups

Kind = Literal["classification", "retrieval", "association"]
MAX_HASHED = 1 << 26
MAX_METADATA = 64  # iWildCam has the most, nine
CLASSES, TEMPLATES = "classnames.txt", "zeroshot_classification_templates.txt"


@dataclass(frozen=True, slots=True)
class EvalItem:
    """An image with its label, its captions, or a row of integers about it."""

    key: str
    image: bytes
    label: int | None = None
    texts: tuple[str, ...] = ()
    metadata: tuple[int, ...] = ()


@dataclass(frozen=True)
class Association:
    """A cue with candidate images, by key, of which some belong to it (WinoGAViL)."""

    cue: str
    candidates: tuple[str, ...]
    chosen: tuple[str, ...]


@dataclass(frozen=True)
class EvalSet:
    """A set on disk. `items` reads it from its start; `digest` changes with its files.

    `items` raises UserError for a file that is broken or not what the set's kind asks for.
    """

    name: str
    kind: Kind
    digest: str
    items: Callable[[], Iterator[EvalItem]]
    classes: list[str] = field(default_factory=list)
    templates: list[str] = field(default_factory=list)
    associations: list[Association] = field(default_factory=list)


def is_webdataset(path: Path) -> bool:
    return (path / "test").is_dir()


def webdataset_set(root: Path) -> EvalSet:
    """A set in WebDataset layout. Raises UserError where a file of it is missing."""
    told = root / "dataset_type.txt"
    kind = " ".join(read_lines(told)).strip() if told.exists() else "classification"
    if kind not in ("classification", "retrieval"):
        raise UserError(f"evaluation set {root}: {kind} sets are not evaluated")
    tars = _tars(root)
    lists = [] if kind == "retrieval" else [root / CLASSES, root / TEMPLATES]
    classes, templates = ([], []) if not lists else (read_lines(lists[0]), read_lines(lists[1]))

    def items() -> Iterator[EvalItem]:
        for tar in tars:
            yield from _read_tar(tar, kind == "retrieval", len(classes))

    digest = files_digest(root, [*tars, *lists])
    return EvalSet(root.name, kind, digest, items, classes, templates)  # type: ignore[arg-type]


def _tars(root: Path) -> list[Path]:
    """The set's tars in the order of their numbers; all that nshards.txt promises."""
    tars = sorted((root / "test").glob("*.tar"), key=lambda path: (len(path.stem), path.stem))
    if not tars:
        raise UserError(f"evaluation set {root}: no tar in test/")
    promise = root / "test" / "nshards.txt"
    if promise.exists() and (count := promise.read_text("utf-8").strip()) != str(len(tars)):
        raise UserError(
            f"evaluation set {root}: {len(tars)} tars, but nshards.txt says {count:.20}. "
            "`capmix evalsets fetch` fetches what is missing."
        )
    return tars


def _read_tar(path: Path, retrieval: bool, classes: int) -> Iterator[EvalItem]:
    wanted = {*IMAGE_SUFFIXES, "txt"} if retrieval else {*IMAGE_SUFFIXES, "cls", "npy"}
    try:
        with path.open("rb") as stream:
            for group in tar_groups(stream, wanted):
                if group.is_dotted:  # webdataset does not read it either
                    continue
                yield _item(path, group, retrieval, classes)
    except (BrokenTarError, OSError) as error:
        raise UserError(f"evaluation set {path}: {error}. Fetch it again.") from error


def _item(path: Path, group: TarGroup, retrieval: bool, classes: int) -> EvalItem:
    where = f"evaluation set {path}, sample {group.key}"
    if group.too_large or group.image is None:
        raise UserError(f"{where}: {group.too_large or 'expected an image'}")
    members = group.members
    if retrieval:
        if "txt" not in members:
            raise UserError(f"{where}: expected a .txt member of captions")
        texts = members["txt"].decode("utf-8", "replace").splitlines()
        return EvalItem(group.key, group.image, texts=tuple(texts))
    metadata = _integers(where, members["npy"]) if "npy" in members else ()
    if "cls" not in members and not metadata:
        raise UserError(f"{where}: expected a .cls member with the number of the class")
    label = _label(where, members["cls"], classes) if "cls" in members else None
    return EvalItem(group.key, group.image, label, metadata=metadata)


def _label(where: str, data: bytes, classes: int) -> int:
    text = data.decode("ascii", "replace").strip()
    if not text.isdigit() or int(text) >= classes:
        raise UserError(f"{where}: label {text!r:.40}, expected 0 to {classes - 1}")
    return int(text)


def _integers(where: str, data: bytes) -> tuple[int, ...]:
    try:
        row = np.load(io.BytesIO(data), allow_pickle=False)
        return tuple(int(value) for value in np.ravel(row)[:MAX_METADATA])
    except Exception as error:  # numpy raises many types on bytes that are no array
        raise UserError(f"{where}: .npy member: {type(error).__name__}: {error}") from error


def read_lines(path: Path) -> list[str]:
    """Stripped lines of a file, blank ones too: the number of a line is a label, as in
    CLIP_benchmark 1.6.2. Raises UserError where the file is missing."""
    try:
        lines = path.read_text("utf-8").splitlines()
    except OSError as error:
        raise UserError(f"evaluation set: {path} is missing") from error
    except ValueError as error:
        raise UserError(f"evaluation set: {path}: {error}") from error
    return [line.strip() for line in lines]


def files_digest(root: Path, paths: Sequence[Path]) -> str:
    """16 hex digits over names and contents; where they are large, over names, sizes and times."""
    sizes = [path.stat().st_size for path in paths]
    large = sum(sizes) > MAX_HASHED
    total = hashlib.sha256()
    for path, size in zip(paths, sizes, strict=True):
        told = f"{path.stat().st_mtime_ns}".encode() if large else path.read_bytes()
        total.update(f"{path.relative_to(root)}\0{size}\0".encode() + told)
    return total.hexdigest()[:16]

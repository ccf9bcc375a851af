"""Evaluation sets, in the WebDataset layout of DataComp and CLIP_benchmark.

A set is a folder with `test/*.tar`. A classification set has `classnames.txt`,
`zeroshot_classification_templates.txt` (`{c}` is the class) and a `.cls` member for each image;
WILDS and fairness sets also have a `.npy` member with metadata. `groups.csv` (classes.py) is
optional. In a retrieval set, `dataset_type.txt` contains `retrieval`, and a `.txt` member has one
caption per line. other_sets.py reads other formats.
"""

import hashlib
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from capmix.errors import UserError
from capmix.evaluation.classes import read_groups
from capmix.pool.sample import IMAGE_SUFFIXES
from capmix.pool.tar_groups import BrokenTarError, TarGroup, tar_groups

Kind = Literal["classification", "retrieval", "association"]
MAX_HASHED = 1 << 26
MAX_METADATA = 64  # iWildCam has the most columns, nine
CLASSES, TEMPLATES = "classnames.txt", "zeroshot_classification_templates.txt"


@dataclass(frozen=True, slots=True)
class EvalItem:
    """An image with its label, its captions or a row of integer metadata."""

    key: str
    image: bytes
    label: int | None = None
    texts: tuple[str, ...] = ()
    metadata: tuple[int, ...] = ()


@dataclass(frozen=True)
class Association:
    """A cue with candidate images, of which `chosen` belong to it (WinoGAViL). Images are keys."""

    cue: str
    candidates: tuple[str, ...]
    chosen: tuple[str, ...]


@dataclass(frozen=True)
class EvalSet:
    """A set on disk. `items` reads it from the start; `digest` changes when its files change.

    `groups` has the group of each class (classes.py), or is empty; the digest does not cover it.

    Iterating over `items` raises UserError if a file is damaged or does not match the set's kind.
    """

    name: str
    kind: Kind
    digest: str
    items: Callable[[], Iterator[EvalItem]]
    classes: list[str] = field(default_factory=list)
    templates: list[str] = field(default_factory=list)
    associations: list[Association] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)


def is_webdataset(path: Path) -> bool:
    return (path / "test").is_dir()


def webdataset_set(root: Path) -> EvalSet:
    """Open a set in WebDataset layout. Raises UserError if a file is missing."""
    kind_file = root / "dataset_type.txt"
    kind = " ".join(read_lines(kind_file)).strip() if kind_file.exists() else "classification"
    if kind not in ("classification", "retrieval"):
        raise UserError(f"evaluation set {root}: sets of type {kind} are not supported")
    tars = _tars(root)
    lists = [] if kind == "retrieval" else [root / CLASSES, root / TEMPLATES]
    classes, templates = ([], []) if not lists else (read_lines(lists[0]), read_lines(lists[1]))

    def items() -> Iterator[EvalItem]:
        for tar in tars:
            yield from _read_tar(tar, kind == "retrieval", len(classes))

    digest = files_digest(root, [*tars, *lists])
    groups = read_groups(root, classes) if lists else []
    about = {"classes": classes, "templates": templates, "groups": groups}
    return EvalSet(root.name, kind, digest, items, **about)  # type: ignore[arg-type]


def _tars(root: Path) -> list[Path]:
    """Return the tars in numeric order. Raises UserError if their count is not in nshards.txt."""
    tars = sorted((root / "test").glob("*.tar"), key=lambda path: (len(path.stem), path.stem))
    if not tars:
        raise UserError(f"evaluation set {root}: no tars in test/")
    expected = root / "test" / "nshards.txt"
    if expected.exists() and (count := expected.read_text("utf-8").strip()) != str(len(tars)):
        raise UserError(
            f"evaluation set {root}: {len(tars)} tars, but nshards.txt expects {count:.20}. "
            "Download the missing ones with `capmix evalsets fetch`."
        )
    return tars


def _read_tar(path: Path, retrieval: bool, classes: int) -> Iterator[EvalItem]:
    wanted = {*IMAGE_SUFFIXES, "txt"} if retrieval else {*IMAGE_SUFFIXES, "cls", "npy"}
    try:
        with path.open("rb") as stream:
            for group in tar_groups(stream, wanted):
                if group.is_dotted:  # webdataset skips it too
                    continue
                yield _item(path, group, retrieval, classes)
    except (BrokenTarError, OSError) as error:
        raise UserError(f"evaluation set {path}: {error}. Download it again.") from error


def _item(path: Path, group: TarGroup, retrieval: bool, classes: int) -> EvalItem:
    where = f"evaluation set {path}, sample {group.key}"
    if group.too_large or group.image is None:
        raise UserError(f"{where}: {group.too_large or 'expected an image'}")
    members = group.members
    if retrieval:
        if "txt" not in members:
            raise UserError(f"{where}: expected a .txt member with captions")
        texts = members["txt"].decode("utf-8", "replace").splitlines()
        return EvalItem(group.key, group.image, texts=tuple(texts))
    metadata = _integers(where, members["npy"]) if "npy" in members else ()
    if "cls" not in members and not metadata:
        raise UserError(f"{where}: expected a .cls member with the class number")
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
    except Exception as error:  # numpy raises many types for invalid data
        raise UserError(f"{where}: .npy member: {type(error).__name__}: {error}") from error


def read_lines(path: Path) -> list[str]:
    """Return the stripped lines of a file. Raises UserError if it cannot be read.

    Blank lines are kept, because line numbers are labels, as in CLIP_benchmark 1.6.2.
    """
    try:
        lines = path.read_text("utf-8").splitlines()
    except OSError as error:
        raise UserError(f"evaluation set: {path} is missing") from error
    except ValueError as error:
        raise UserError(f"evaluation set: {path}: {error}") from error
    return [line.strip() for line in lines]


def files_digest(root: Path, paths: Sequence[Path]) -> str:
    """Return 16 hex digits of a hash of names and contents.

    Above MAX_HASHED bytes in total, hashes names, sizes and modification times instead.
    """
    sizes = [path.stat().st_size for path in paths]
    large = sum(sizes) > MAX_HASHED
    total = hashlib.sha256()
    for path, size in zip(paths, sizes, strict=True):
        state = f"{path.stat().st_mtime_ns}".encode() if large else path.read_bytes()
        total.update(f"{path.relative_to(root)}\0{size}\0".encode() + state)
    return total.hexdigest()[:16]

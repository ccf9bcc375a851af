"""Evaluation sets in CLIP_benchmark's WebDataset layout.

A folder with `test/*.tar`; for classification `classnames.txt` and
`zeroshot_classification_templates.txt` (`{c}` is the class) and a `.cls` member per image; for
retrieval `dataset_type.txt` saying `retrieval` and a `.txt` member with one caption a line.
"""

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from capmix.embed import ImageEncoder, embed, embeddings_folder, read_embeddings
from capmix.errors import UserError
from capmix.pool import Sample, embedded_folder, open_pool
from capmix.rows import OK
from capmix.store import Store


@dataclass(frozen=True)
class EvalSet:
    """An evaluation set with its images already embedded.

    `embeddings` (N, dimensions) with `keys`; for classification `labels` int (N,), `classes` and
    `templates`; for retrieval `texts` and `image_of_text` int (texts,).
    """

    name: str
    keys: list[str]
    embeddings: np.ndarray
    labels: np.ndarray
    classes: list[str]
    templates: list[str]
    texts: list[str]
    image_of_text: np.ndarray

    @property
    def is_retrieval(self) -> bool:
        return not self.classes

    @cached_property
    def digest(self) -> str:
        """16 hex digits over everything that a result depends on."""
        total = hashlib.sha256(self.embeddings.tobytes() + self.labels.tobytes())
        lists = [self.classes, self.templates, self.texts, self.image_of_text.tolist()]
        total.update(json.dumps(lists).encode())
        return total.hexdigest()[:16]


def embedded_evalsets() -> list[str]:
    """Folders of the embedded test sets: Tux Paint stamps, for classification and retrieval."""
    return [str(path) for path in sorted((embedded_folder() / "tuxpaint").glob("wds_*_test"))]


def load_evalset(store: Store, folder: str, encoder: ImageEncoder) -> EvalSet:
    """Read a set and embed its images, or take the embeddings that the work directory has.

    Raises UserError where the folder does not have the layout, or an image cannot be read.
    """
    root = Path(folder)
    if not (root / "test").is_dir():
        raise UserError(f"evaluation set {folder}: no test/ folder with tars in it")
    retrieval = (root / "dataset_type.txt").exists() and (
        "retrieval" in (root / "dataset_type.txt").read_text("utf-8")
    )
    classes = [] if retrieval else _lines(root / "classnames.txt")
    templates = [] if retrieval else _lines(root / "zeroshot_classification_templates.txt")
    pool = open_pool(str(root / "test"))
    own = Store(store.path(f"evalsets/{root.name}"))
    embed(pool, encoder, own, max_failures=0.0, name=root.name)
    keys: list[str] = []
    labels: list[int] = []
    texts: list[str] = []
    image_of_text: list[int] = []
    arrays = []
    for shard in pool.shards:
        part = f"{embeddings_folder(encoder.name)}/{shard.name}"
        rows, array = read_embeddings(own, part)
        arrays.append(array)
        good = {row.key for row in rows if row.status == OK}
        for sample in pool.read(shard):
            if not isinstance(sample, Sample) or sample.key not in good:
                continue
            if retrieval:
                captions = [line for line in (sample.text or "").split("\n") if line.strip()]
                texts += captions
                image_of_text += [len(keys)] * len(captions)
            else:
                labels.append(_label(sample, len(classes), folder))
            keys.append(f"{shard.name}/{sample.key}")
    return EvalSet(
        root.name,
        keys,
        np.concatenate(arrays),
        np.array(labels, np.int64),
        classes,
        templates,
        texts,
        np.array(image_of_text, np.int64),
    )


def _lines(path: Path) -> list[str]:
    try:
        return [line for line in path.read_text("utf-8").split("\n") if line.strip()]
    except OSError as error:
        raise UserError(f"evaluation set: {path} is missing") from error


def _label(sample: Sample, classes: int, folder: str) -> int:
    label = (sample.label or "").strip()
    if not label.isdigit() or int(label) >= classes:
        raise UserError(
            f"evaluation set {folder}, sample {sample.key}: label {label!r}, "
            f"expected 0 to {classes - 1}"
        )
    return int(label)

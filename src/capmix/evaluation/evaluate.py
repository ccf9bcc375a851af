"""Compute the zero-shot metrics of a model on an evaluation set."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from capmix.errors import UserError
from capmix.evaluation.classes import Counts, count_classes
from capmix.evaluation.evalset import EvalItem, EvalSet
from capmix.evaluation.groups import COLUMNS, FACES, GROUP_METRICS, OBJECTIVES, faces
from capmix.evaluation.metrics import association_metrics, classify, retrieve
from capmix.evaluation.vectors import VectorCache

Metrics = dict[str, Any]
VOWELS = "aeiou"


@dataclass(frozen=True)
class SetResult:
    """The metrics of a set, and the counts per class if it has classes (classes.py)."""

    metrics: Metrics
    classes: Counts | None = None


def has_classes(evalset: EvalSet, task: str) -> bool:
    """Return whether a set has results per class: not the ones with several sets of classes."""
    return evalset.kind == "classification" and task not in FACES


def evaluate_set(vectors: VectorCache, evalset: EvalSet, task: str = "") -> SetResult:
    """Compute all metrics of a set; `task` is the key of a DataComp task, or empty.

    Raises UserError if the set does not have the contents that its kind or the task requires.
    """
    items, images = vectors.of_images(evalset)
    if task in FACES:
        return SetResult(_faces(vectors, evalset, items, images, COLUMNS[task]))
    if evalset.kind == "association":
        return SetResult(_associations(vectors, evalset, items, images))
    if evalset.kind == "retrieval":
        texts = [text for item in items for text in item.texts]
        image_of_text = np.repeat(np.arange(len(items)), [len(item.texts) for item in items])
        if not texts:
            raise UserError(f"evaluation set {evalset.name}: no captions")
        found = retrieve(images, vectors.of_texts(texts), image_of_text)
        return SetResult(dict(found.metrics()))
    if any(item.label is None for item in items):
        raise UserError(f"evaluation set {evalset.name}: samples without a .cls member")
    labels = np.array([item.label for item in items], np.int64)
    classifier = vectors.classifier(evalset.classes, evalset.templates)
    result = classify(images, classifier, labels)
    metrics: Metrics = dict(result.metrics())
    if task in GROUP_METRICS:
        metrics |= GROUP_METRICS[task](result, _metadata(evalset, items, COLUMNS[task]))
    return SetResult(metrics, count_classes(result, evalset.classes))


def usual_metric(evalset: EvalSet) -> str:
    """Return the main metric of a set that is not a DataComp task."""
    usual = {"classification": "acc1", "retrieval": "mean_recall@1"}
    return usual.get(evalset.kind, "avg_jaccard_score")


def _metadata(evalset: EvalSet, items: list[EvalItem], columns: int) -> np.ndarray:
    """Return int (N, fields). Raises UserError unless there are at least `columns` fields."""
    lengths = {len(item.metadata) for item in items}
    if len(lengths) != 1 or min(lengths) < columns:
        raise UserError(
            f"evaluation set {evalset.name}: expected .npy members with at least {columns} numbers"
        )
    return np.array([item.metadata for item in items], np.int64)


def _faces(
    vectors: VectorCache, evalset: EvalSet, items: list[EvalItem], images: np.ndarray, columns: int
) -> Metrics:
    predicted = {}
    for objective in OBJECTIVES:
        classes, templates = (
            [line.partition(":")[2] for line in lines if line.partition(":")[0] == objective]
            for lines in (evalset.classes, evalset.templates)
        )
        if not classes or not templates:
            raise UserError(
                f"evaluation set {evalset.name}: no classes or templates for {objective}:"
            )
        predicted[objective] = (images @ vectors.classifier(classes, templates).T).argmax(axis=1)
    return dict(faces(predicted, _metadata(evalset, items, columns)))


def _associations(
    vectors: VectorCache, evalset: EvalSet, items: list[EvalItem], images: np.ndarray
) -> Metrics:
    row_of = {item.key: row for row, item in enumerate(items)}
    cues = vectors.of_texts([_prompt(one.cue) for one in evalset.associations])
    scores, chosen = [], []
    for one, cue in zip(evalset.associations, cues, strict=True):
        scores.append(images[[row_of[name] for name in one.candidates]] @ cue)
        chosen.append(np.isin(one.candidates, one.chosen))
    return dict(association_metrics(scores, chosen))


def _prompt(cue: str) -> str:
    """Return the cue in lower case after an article, as in DataComp's wino_eval.py."""
    name = cue.lower()
    return f"{'An' if name[:1] in VOWELS else 'A'} {name}"

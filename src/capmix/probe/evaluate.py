"""Evaluate a probe zero-shot on evaluation sets; one result file per checkpoint."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from capmix.errors import UserError
from capmix.evaluation.metrics import Retrieval, classify, retrieve
from capmix.models.image_pass import unit
from capmix.probe.evalset import FeatureSet
from capmix.probe.fit import Probe, load_probe
from capmix.probe.towers import MINI_TOWERS, Towers
from capmix.storage.draft import Draft
from capmix.storage.layout import EVALSETS, PROBE_RESULTS
from capmix.storage.marker import Counts, Marker
from capmix.storage.once import once
from capmix.storage.store import Store


@dataclass(frozen=True)
class ProbeResult:
    """Metrics by evaluation set, and per-item hits (0 or 1) by `set/metric`, for intervals."""

    part: str
    metrics: dict[str, dict[str, Any]]
    hits: dict[str, np.ndarray]


def evaluate(
    store: Store,
    checkpoint: str,
    evalsets: Sequence[FeatureSet],
    towers: Towers = MINI_TOWERS,
    folder: str = PROBE_RESULTS,
) -> ProbeResult:
    """Evaluate `checkpoint` (a path that starts with `probes/`) unless its result is up to date.

    The result is written below `folder`. Raises UserError if the features of a set do not have the
    dimensions that the probe was trained on.
    """
    part = f"{folder}/{checkpoint.split('/', 1)[1]}"
    inputs = {"checkpoint": store.fingerprint(checkpoint)}
    config: dict[str, Any] = {
        "evalsets": {one.evalset.name: one.evalset.digest for one in evalsets}
    }

    def make(draft: Draft) -> Marker:
        student = load_probe(store, checkpoint, towers)
        metrics: dict[str, dict[str, Any]] = {}
        hits: dict[str, np.ndarray] = {}
        for one in evalsets:
            name = one.evalset.name
            metrics[name], found = _evaluate_one(student, one)
            hits |= {f"{name}/{metric}": values for metric, values in found.items()}
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, **hits)
        draft.write_bytes(f"{part}.npz", buffer.getvalue())
        rows = sum(len(one.items) for one in evalsets)
        return Marker(inputs, config, rows, Counts(ok=rows), {"metrics": metrics})

    once(store, part, inputs, config, make, files=[f"{part}.npz"])
    return load_result(store, part)


def load_result(store: Store, part: str) -> ProbeResult:
    """Read a result of `evaluate`. `part` is its path in the work directory, without suffix."""
    marker = store.read_marker(part)
    assert marker is not None, f"{part}: not evaluated"
    with np.load(io.BytesIO(store.read_part_bytes(f"{part}.npz")), allow_pickle=False) as z:
        hits = {name: z[name] for name in z.files}
    return ProbeResult(part, marker.extra["metrics"], hits)


def zero_shot_classifier(student: Probe, classes: list[str], templates: list[str]) -> np.ndarray:
    """Return unit vectors (classes, D): each class's mean normalized embedding over templates."""
    texts = [template.replace("{c}", name) for name in classes for template in templates]
    embeddings = student.encode_texts(texts).reshape(len(classes), len(templates), -1)
    return unit(embeddings.mean(axis=1))


def _evaluate_one(
    student: Probe, features: FeatureSet
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    evalset = features.evalset
    width, expected = features.features.shape[1], len(student.image_projection)
    if width != expected:
        raise UserError(
            f"evaluation set {evalset.name}: features of {width} dimensions, but the probe was "
            f"trained on {expected}; delete {EVALSETS}/{evalset.name} in the work directory"
        )
    images = student.project_images(features.features)
    if evalset.kind == "retrieval":
        found = retrieve(images, student.encode_texts(features.texts), features.image_of_text)
        return _recalls(found), {
            "text_retrieval_recall@5": found.text_hits[5],
            "image_retrieval_recall@5": found.image_hits[5],
        }
    classifier = zero_shot_classifier(student, evalset.classes, evalset.templates)
    classification = classify(images, classifier, features.labels)
    return dict(classification.metrics()), {"acc1": classification.hits1}


def _recalls(found: Retrieval) -> dict[str, Any]:
    shown = ("retrieval_recall@1", "retrieval_recall@5")
    return {name: value for name, value in found.metrics().items() if name.endswith(shown)}

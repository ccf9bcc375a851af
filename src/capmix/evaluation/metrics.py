"""Zero-shot metrics as in CLIP_benchmark 1.6.2, and the WinoGAViL metric of DataComp."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

BLOCK = 4096  # rows of the score matrix that are computed at once
TOP = 5
RECALL_AT = (1, 5, 10)


@dataclass(frozen=True)
class Classification:
    """Predictions of N images.

    `top` is int (N, up to 5): the best classes, best first. `first` is int (N,): the first
    class with the highest score. It can differ from `top` for classes with equal scores, such as
    the two `missile` classes of ImageNet. `labels` is int (N,), and `classes` the number of
    classes.
    """

    top: np.ndarray
    first: np.ndarray
    labels: np.ndarray
    classes: int

    @property
    def hits1(self) -> np.ndarray:
        """Whether the correct class is first, bool (N,)."""
        hits: np.ndarray = self.top[:, 0] == self.labels
        return hits

    @property
    def hits5(self) -> np.ndarray:
        """Whether the correct class is among the first five, bool (N,)."""
        hits: np.ndarray = (self.top == self.labels[:, None]).any(axis=1)
        return hits

    def metrics(self) -> dict[str, float | None]:
        """Return acc1, acc5 (None for fewer than five classes) and mean_per_class_recall."""
        hits = self.first == self.labels
        recalls = [hits[self.labels == label].mean() for label in np.unique(self.labels)]
        return {
            "acc1": float(self.hits1.mean()),
            "acc5": float(self.hits5.mean()) if self.classes >= TOP else None,
            "mean_per_class_recall": float(np.mean(recalls)),
        }


def classify(images: np.ndarray, classifier: np.ndarray, labels: np.ndarray) -> Classification:
    """Classify images by their similarity to class vectors.

    `images` (N, D) and `classifier` (classes, D) are float32 unit vectors; `labels` is int (N,).
    """
    top, first = [], []
    for start in range(0, len(images), BLOCK):
        scores = 100 * images[start : start + BLOCK] @ classifier.T
        top.append(_top(scores, TOP))
        first.append(scores.argmax(axis=1))
    return Classification(np.concatenate(top), np.concatenate(first), labels, len(classifier))


@dataclass(frozen=True)
class Retrieval:
    """Whether a correct answer is among the first k results, by k.

    `text_hits` are bool (images,): texts retrieved for each image. `image_hits` are bool (texts,).
    """

    text_hits: dict[int, np.ndarray]
    image_hits: dict[int, np.ndarray]

    def metrics(self) -> dict[str, float]:
        """Return the recalls: `text_retrieval_*` is image -> text, `image_*` is text -> image."""
        found = {}
        for k, hits in self.text_hits.items():
            found[f"text_retrieval_recall@{k}"] = float(hits.mean())
            found[f"image_retrieval_recall@{k}"] = float(self.image_hits[k].mean())
        both = found["text_retrieval_recall@1"], found["image_retrieval_recall@1"]
        return found | {"mean_recall@1": sum(both) / 2}


def retrieve(images: np.ndarray, texts: np.ndarray, image_of_text: np.ndarray) -> Retrieval:
    """Retrieve in both directions with float32 unit vectors (images, D) and (texts, D).

    `image_of_text`, int (texts,), is the index of each text's image.
    """
    text_hits: dict[int, list[np.ndarray]] = {k: [] for k in RECALL_AT}
    image_hits: dict[int, list[np.ndarray]] = {k: [] for k in RECALL_AT}
    for start in range(0, len(texts), BLOCK):
        scores = texts[start : start + BLOCK] @ images.T
        own = image_of_text[start : start + BLOCK, None]
        for k, hits in image_hits.items():
            hits.append((_top(scores, k) == own).any(axis=1))
    for start in range(0, len(images), BLOCK):
        scores = images[start : start + BLOCK] @ texts.T
        numbers = np.arange(start, start + len(scores))[:, None]
        for k, hits in text_hits.items():
            hits.append((image_of_text[_top(scores, k)] == numbers).any(axis=1))
    return Retrieval(
        {k: np.concatenate(hits) for k, hits in text_hits.items()},
        {k: np.concatenate(hits) for k, hits in image_hits.items()},
    )


def _top(scores: np.ndarray, k: int) -> np.ndarray:
    """Return the columns with the highest scores, best first, int (rows, up to k).

    Uses torch like the reference tools, because the order of equal scores depends on it.
    """
    import torch

    top = torch.topk(torch.from_numpy(scores), min(k, scores.shape[1]), dim=1).indices
    found: np.ndarray = top.numpy()
    return found


def association_metrics(
    scores: Sequence[np.ndarray], chosen: Sequence[np.ndarray]
) -> dict[str, float | None]:
    """Compute WinoGAViL's Jaccard index of predicted and correct images.

    Each instance has `scores`, float (candidates,), and `chosen`, bool (candidates,). The predicted
    images are the n highest-scoring ones, where n is the number of chosen images. The value is None
    for a number of candidates that no instance has.
    """
    found = []
    for score, truth in zip(scores, chosen, strict=True):
        taken = np.zeros(len(score), bool)
        taken[np.argsort(score)[len(score) - int(truth.sum()) :]] = True
        found.append((taken & truth).sum() / (taken | truth).sum())
    jaccard, sizes = np.array(found), np.array([len(score) for score in scores])
    groups = {str(size): sizes == size for size in (5, 6, 10, 12)}
    groups |= {"5-6": sizes <= 6, "10-12": sizes >= 10}
    return {"avg_jaccard_score": float(jaccard.mean())} | {
        f"jaccard_score_{name}": float(jaccard[rows].mean()) if rows.any() else None
        for name, rows in groups.items()
    }

"""Zero-shot metrics, as CLIP_benchmark 1.6.2 defines them, and WinoGAViL's as DataComp has it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

BLOCK = 4096  # rows of scores at once
TOP = 5
RECALL_AT = (1, 5, 10)


@dataclass(frozen=True)
class Classification:
    """`top` int (N, up to 5): the best classes of each image, best first; `first` int (N,): the
    first of those with the highest score (they differ from `top` where classes are equal, as the
    two `missile` of ImageNet); `labels` int (N,); `classes` is how many there are."""

    top: np.ndarray
    first: np.ndarray
    labels: np.ndarray
    classes: int

    @property
    def hits1(self) -> np.ndarray:
        """bool (N,): whether the class was first."""
        hits: np.ndarray = self.top[:, 0] == self.labels
        return hits

    @property
    def hits5(self) -> np.ndarray:
        """bool (N,): whether the class was among the first five."""
        hits: np.ndarray = (self.top == self.labels[:, None]).any(axis=1)
        return hits

    def metrics(self) -> dict[str, float | None]:
        """acc5 is None where there are fewer than five classes."""
        hits = self.first == self.labels
        recalls = [hits[self.labels == label].mean() for label in np.unique(self.labels)]
        return {
            "acc1": float(self.hits1.mean()),
            "acc5": float(self.hits5.mean()) if self.classes >= TOP else None,
            "mean_per_class_recall": float(np.mean(recalls)),
        }


def classify(images: np.ndarray, classifier: np.ndarray, labels: np.ndarray) -> Classification:
    """Zero-shot classification.

    `images` (N, D) and `classifier` (classes, D) are unit vectors, float32; `labels` int (N,).
    """
    top, first = [], []
    for start in range(0, len(images), BLOCK):
        scores = 100 * images[start : start + BLOCK] @ classifier.T
        top.append(_top(scores, TOP))
        first.append(scores.argmax(axis=1))
    return Classification(np.concatenate(top), np.concatenate(first), labels, len(classifier))


@dataclass(frozen=True)
class Retrieval:
    """Whether a right answer is among the first k: bool (images,) for texts, (texts,) for images,
    by k."""

    text_hits: dict[int, np.ndarray]
    image_hits: dict[int, np.ndarray]

    def metrics(self) -> dict[str, float]:
        """`text_retrieval_recall@k` is image -> text, `image_retrieval_recall@k` text -> image."""
        found = {}
        for k, hits in self.text_hits.items():
            found[f"text_retrieval_recall@{k}"] = float(hits.mean())
            found[f"image_retrieval_recall@{k}"] = float(self.image_hits[k].mean())
        both = found["text_retrieval_recall@1"], found["image_retrieval_recall@1"]
        return found | {"mean_recall@1": sum(both) / 2}


def retrieve(images: np.ndarray, texts: np.ndarray, image_of_text: np.ndarray) -> Retrieval:
    """Retrieval both ways over unit vectors (images, D) and (texts, D), float32.

    `image_of_text` int (texts,) names each text's image.
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
    """int (rows, up to k): columns with the highest scores, best first.

    By torch, as the reference tools: which of equal scores comes first is its matter.
    """
    import torch

    top = torch.topk(torch.from_numpy(scores), min(k, scores.shape[1]), dim=1).indices
    found: np.ndarray = top.numpy()
    return found


def association_metrics(
    scores: Sequence[np.ndarray], chosen: Sequence[np.ndarray]
) -> dict[str, float | None]:
    """WinoGAViL: Jaccard index of the images that a cue scores highest and those that belong to it.

    `scores` float (candidates,) and `chosen` bool (candidates,) of each instance; as many are taken
    as belong. None for numbers of candidates that no instance has.
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

"""Zero-shot metrics, as CLIP_benchmark 1.6.2 defines them, and WinoGAViL's as DataComp has it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

BLOCK = 4096  # rows of scores at once
TOP = 5


@dataclass(frozen=True)
class Classification:
    """`top` int (N, up to 5): the best classes of each image, best first; `labels` int (N,)."""

    top: np.ndarray
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
        hits = self.hits1
        recalls = [hits[self.labels == label].mean() for label in np.unique(self.labels)]
        return {
            "acc1": float(hits.mean()),
            "acc5": float(self.hits5.mean()) if self.classes >= TOP else None,
            "mean_per_class_recall": float(np.mean(recalls)),
        }


def classify(images: np.ndarray, classifier: np.ndarray, labels: np.ndarray) -> Classification:
    """Zero-shot classification.

    `images` (N, D) and `classifier` (classes, D) are unit vectors; `labels` int (N,).
    """
    return Classification(top_classes(images, classifier), labels, len(classifier))


def top_classes(images: np.ndarray, classifier: np.ndarray) -> np.ndarray:
    """int (N, up to 5): the classes with the highest scores of each image, best first."""
    found = []
    for start in range(0, len(images), BLOCK):
        scores = images[start : start + BLOCK] @ classifier.T
        first = min(TOP, scores.shape[1])
        some = np.argpartition(-scores, first - 1, axis=1)[:, :first]
        order = np.argsort(-np.take_along_axis(scores, some, axis=1), axis=1, kind="stable")
        found.append(np.take_along_axis(some, order, axis=1))
    return np.concatenate(found)


@dataclass(frozen=True)
class Retrieval:
    """Rank of the best right answer, from 0: int (images,) and int (texts,)."""

    text_ranks: np.ndarray
    image_ranks: np.ndarray

    def metrics(self, recall_at: tuple[int, ...] = (1, 5, 10)) -> dict[str, float]:
        """`text_retrieval_recall@k` is image -> text, `image_retrieval_recall@k` text -> image."""
        found = {}
        for k in recall_at:
            found[f"text_retrieval_recall@{k}"] = float((self.text_ranks < k).mean())
            found[f"image_retrieval_recall@{k}"] = float((self.image_ranks < k).mean())
        both = found["text_retrieval_recall@1"], found["image_retrieval_recall@1"]
        return found | {"mean_recall@1": sum(both) / 2}


def retrieve(images: np.ndarray, texts: np.ndarray, image_of_text: np.ndarray) -> Retrieval:
    """Retrieval both ways over unit vectors (images, D) and (texts, D).

    `image_of_text` int (texts,) names each text's image.
    """
    image_ranks = np.empty(len(texts), np.int64)
    for start in range(0, len(texts), BLOCK):
        scores = texts[start : start + BLOCK] @ images.T
        own = scores[np.arange(len(scores)), image_of_text[start : start + BLOCK]]
        image_ranks[start : start + BLOCK] = (scores > own[:, None]).sum(axis=1)
    text_ranks = np.full(len(images), len(texts))
    for start in range(0, len(images), BLOCK):
        scores = images[start : start + BLOCK] @ texts.T
        right = image_of_text[None, :] == np.arange(start, start + len(scores))[:, None]
        best = np.where(right, scores, -np.inf).max(axis=1)
        has = np.isfinite(best)
        ranks = (scores > best[:, None]).sum(axis=1)
        text_ranks[start : start + BLOCK][has] = ranks[has]
    return Retrieval(text_ranks, image_ranks)


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

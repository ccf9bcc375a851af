"""Zero-shot metrics, as CLIP_benchmark 1.6.2 defines them."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Classification:
    """`hits1` and `hits5`: bool (N,), whether the class was first or among the first five."""

    hits1: np.ndarray
    hits5: np.ndarray
    labels: np.ndarray

    def metrics(self) -> dict[str, float]:
        recalls = [self.hits1[self.labels == label].mean() for label in np.unique(self.labels)]
        return {
            "acc1": float(self.hits1.mean()),
            "acc5": float(self.hits5.mean()),
            "mean_per_class_recall": float(np.mean(recalls)),
        }


def classify(images: np.ndarray, classifier: np.ndarray, labels: np.ndarray) -> Classification:
    """Zero-shot classification.

    `images` (N, D) and `classifier` (classes, D) are unit vectors; `labels` int (N,).
    """
    ranks = _ranks(images @ classifier.T, labels)
    return Classification(ranks < 1, ranks < 5, labels)


@dataclass(frozen=True)
class Retrieval:
    """Rank of the best right answer, from 0: int (images,) and int (texts,)."""

    text_ranks: np.ndarray
    image_ranks: np.ndarray

    def metrics(self, recall_at: tuple[int, ...] = (1, 5)) -> dict[str, float]:
        """`text_retrieval_recall@k` is image -> text, `image_retrieval_recall@k` text -> image."""
        found = {}
        for k in recall_at:
            found[f"text_retrieval_recall@{k}"] = float((self.text_ranks < k).mean())
            found[f"image_retrieval_recall@{k}"] = float((self.image_ranks < k).mean())
        return found


def retrieve(images: np.ndarray, texts: np.ndarray, image_of_text: np.ndarray) -> Retrieval:
    """Retrieval both ways over unit vectors (images, D) and (texts, D).

    `image_of_text` int (texts,) names each text's image.
    """
    scores = images @ texts.T
    image_ranks = _ranks(scores.T, image_of_text)
    text_ranks = np.full(len(images), len(texts))
    for image in range(len(images)):
        own = scores[image, image_of_text == image]
        if len(own):
            text_ranks[image] = (scores[image] > own.max()).sum()
    return Retrieval(text_ranks, image_ranks)


def _ranks(scores: np.ndarray, right: np.ndarray) -> np.ndarray:
    """How many answers score higher than the right one in each row, int (N,)."""
    own = scores[np.arange(len(scores)), right]
    ranks: np.ndarray = (scores > own[:, None]).sum(axis=1)
    return ranks

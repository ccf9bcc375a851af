import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score

from capmix.evaluation.metrics import classify, retrieve


def unit(random: np.random.Generator, rows: int, columns: int = 6) -> np.ndarray:
    values = random.standard_normal((rows, columns)).astype(np.float32)
    return values / np.linalg.norm(values, axis=1, keepdims=True)


@given(st.integers(0, 1000))
def test_classification_equals_a_plain_sort(seed: int) -> None:
    random = np.random.default_rng(seed)
    images, classes = unit(random, 30), unit(random, 7)
    labels = random.integers(7, size=30)
    found = classify(images, classes, labels).metrics()
    order = np.argsort(-(images @ classes.T), axis=1)
    hits = [label in row[:5] for label, row in zip(labels, order, strict=True)]
    first = order[:, 0] == labels
    recall = [first[labels == label].mean() for label in set(labels)]
    assert found["acc1"] == first.mean()
    assert found["acc5"] == np.mean(hits)
    assert np.isclose(found["mean_per_class_recall"], np.mean(recall))


@given(st.integers(0, 1000))
def test_retrieval_follows_clip_benchmarks_definition(seed: int) -> None:
    """image_retrieval: share of texts whose image is in the top k; text_retrieval: share of
    images with one of their own texts in the top k (CLIP_benchmark zeroshot_retrieval.py)."""
    random = np.random.default_rng(seed)
    images, texts = unit(random, 12), unit(random, 20)
    owner = np.concatenate([np.arange(12), random.integers(12, size=8)])
    scores = images @ texts.T
    found = retrieve(images, texts, owner).metrics()
    for k in (1, 5):
        top_texts = np.argsort(-scores, axis=1)[:, :k]
        top_images = np.argsort(-scores.T, axis=1)[:, :k]
        text_recall = np.mean([(owner[row] == i).any() for i, row in enumerate(top_texts)])
        image_recall = np.mean([owner[t] in row for t, row in enumerate(top_images)])
        assert np.isclose(found[f"text_retrieval_recall@{k}"], text_recall)
        assert np.isclose(found[f"image_retrieval_recall@{k}"], image_recall)


def test_equal_scores_are_told_apart_as_the_references_do() -> None:
    """ImageNet has the classes `missile` and `sunglasses` twice: accuracy uses torch's topk,
    mean per-class recall uses argmax (CLIP_benchmark zeroshot_classification.py)."""
    random = np.random.default_rng(0)
    classes = unit(random, 9)[[0, 1, 2, 3, 3, 4, 5, 6, 7, 8, 8]]
    images, labels = unit(random, 200), random.integers(11, size=200)
    logits = 100 * torch.from_numpy(images) @ torch.from_numpy(classes).T
    found = classify(images, classes, labels).metrics()
    top = logits.topk(5, 1, True, True).indices.numpy()
    assert found["acc1"] == (top[:, 0] == labels).mean()
    assert found["acc5"] == (top == labels[:, None]).any(1).mean()
    first = logits.argmax(1).numpy()
    expected = balanced_accuracy_score(labels, first)
    assert found["mean_per_class_recall"] == pytest.approx(expected, abs=1e-9)

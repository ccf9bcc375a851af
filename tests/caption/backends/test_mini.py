import numpy as np
import pytest
from samples import image_bytes

from capmix.caption.backends.mini import MiniCaptioner, gumbel
from capmix.caption.settings import CaptionSettings
from capmix.mini.image_tower import LiteTower
from capmix.models.images import decode_image


@pytest.fixture(scope="module")
def embeddings(tower: LiteTower) -> np.ndarray:
    return tower.encode([decode_image(image_bytes(seed)) for seed in range(40)])


UIDS = [f"{i:032x}" for i in range(40)]


def test_features_do_not_depend_on_the_batch(tower: LiteTower, embeddings: np.ndarray) -> None:
    images = [decode_image(image_bytes(seed)) for seed in range(40)]
    alone = np.concatenate([tower.encode([image]) for image in images[:5]])
    assert np.array_equal(alone, embeddings[:5])
    backwards = tower.encode(images[::-1])[::-1]
    assert np.array_equal(backwards, embeddings)


@pytest.mark.parametrize("size", [1, 7, 40])
def test_captions_do_not_depend_on_the_batch(
    tower: LiteTower, embeddings: np.ndarray, size: int
) -> None:
    captioner = MiniCaptioner(CaptionSettings(captions_per_image=2), encoder=tower)
    whole = captioner.caption(embeddings, UIDS, "mini")
    pieces = []
    for start in range(0, 40, size):
        part = slice(start, start + size)
        pieces += captioner.caption(embeddings[part], UIDS[part], "mini")
    assert pieces == whole
    order = np.random.default_rng(0).permutation(40)
    shuffled = captioner.caption(embeddings[order], [UIDS[i] for i in order], "mini")
    assert [shuffled[list(order).index(i)] for i in range(40)] == whole


def test_seed_source_and_number_change_the_draw(tower: LiteTower, embeddings: np.ndarray) -> None:
    first = MiniCaptioner(CaptionSettings(captions_per_image=2), encoder=tower)
    captions = first.caption(embeddings, UIDS, "mini")
    assert captions != first.caption(embeddings, UIDS, "other")
    assert captions != MiniCaptioner(CaptionSettings(top_k=2, seed=1), encoder=tower).caption(
        embeddings, UIDS, "mini"
    )
    assert any(one.text != two.text for one, two in captions)


def test_temperature_zero_is_the_nearest_phrase(tower: LiteTower, embeddings: np.ndarray) -> None:
    greedy = MiniCaptioner(CaptionSettings(temperature=0), encoder=tower).caption(
        embeddings, UIDS, "mini"
    )
    narrow = MiniCaptioner(CaptionSettings(top_k=1), encoder=tower).caption(
        embeddings, UIDS, "mini"
    )
    assert greedy == narrow


def test_gumbel_argmax_draws_from_the_softmax() -> None:
    logits = np.array([1.0, 0.0, -1.0, 0.5])
    expected = np.exp(logits) / np.exp(logits).sum()
    draws = 4000
    counts = np.zeros(4)
    for i in range(draws):
        counts[np.argmax(logits + gumbel(f"test/{i}", 4))] += 1
    chi_square = ((counts - draws * expected) ** 2 / (draws * expected)).sum()
    assert chi_square < 16.27  # 99.9% quantile at 3 degrees of freedom


def test_captions_have_three_words_where_the_bank_allows(tower: LiteTower) -> None:
    phrases = MiniCaptioner(encoder=tower)._phrases
    assert sum(len(phrase.split()) >= 3 for phrase in phrases) > 0.95 * len(phrases)

"""The noise is SplitMix64, and the draws follow the top-K softmax."""

import hashlib
import math

import numpy as np
import pytest
import torch
from scipy import stats

from capmix.caption.sampling import (
    _ranked,
    caption_key,
    draw_tokens,
    gumbel_noise,
    sample_tokens,
    top_tokens,
)
from capmix.caption.settings import CaptionSettings

MASK = 2**64 - 1


def mixed(bits: int) -> int:
    """SplitMix64's finaliser on unsigned integers, as published."""
    bits = ((bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    bits = ((bits ^ (bits >> 27)) * 0x94D049BB133111EB) & MASK
    return bits ^ (bits >> 31)


def test_noise_is_splitmix64_of_key_step_and_token() -> None:
    golden = 0x9E3779B97F4A7C15
    for key, step, token in [(0, 0, 0), (-5, 3, 49407), (2**63 - 1, 39, 1), (-(2**63), 7, 50_000)]:
        start = mixed(((key & MASK) + step * golden) & MASK)
        bits = mixed((start + token * golden) & MASK)
        expected = -math.log(-math.log(((bits >> 11) + 0.5) * 2.0**-53))
        found = gumbel_noise(torch.tensor([key]), step, torch.tensor([[token]]))
        assert math.isclose(found.item(), expected, rel_tol=1e-12)


def test_key_is_the_first_eight_bytes_of_sha256() -> None:
    digest = hashlib.sha256(b"0/uid/blip/2").digest()
    assert caption_key(0, "uid", "blip", 2) == int.from_bytes(digest[:8], "big", signed=True)


def test_draws_follow_the_softmax_of_the_top_k() -> None:
    """Chi-square over 40,000 keys; the fixed keys make the test repeatable."""
    logits = torch.randn(30, generator=torch.Generator().manual_seed(0))
    draws, top_k, temperature = 40_000, 8, 0.75
    settings = CaptionSettings(top_k=top_k, temperature=temperature)
    keys = torch.tensor([caption_key(0, str(i), "s", 0) for i in range(draws)])
    drawn = sample_tokens(logits.expand(draws, -1), keys, 5, settings).numpy()
    best = logits.topk(top_k)
    likely = torch.softmax(best.values.double() / temperature, 0).numpy() * draws
    counts = np.array([(drawn == token).sum() for token in best.indices.tolist()])
    assert counts.sum() == draws
    assert stats.chisquare(counts, likely).pvalue > 0.01


def test_temperature_zero_takes_the_largest() -> None:
    logits = torch.randn(4, 30, generator=torch.Generator().manual_seed(1))
    settings = CaptionSettings(top_k=5, temperature=0)
    drawn = sample_tokens(logits, torch.zeros(4, dtype=torch.int64), 0, settings)
    assert drawn.tolist() == logits.argmax(1).tolist()


@pytest.mark.parametrize("decimals", [0, 1, 6])
def test_of_equal_logits_the_lower_ids_are_chosen(decimals: int) -> None:
    """`decimals` 0 gives hundreds of equal logits, 6 almost none."""
    logits = torch.randn(20, 3000, generator=torch.Generator().manual_seed(2)).round(
        decimals=decimals
    )
    logits[3] = -torch.inf
    logits[3, 7] = -0.0
    for count in (1, 50, 4000):
        values, tokens = top_tokens(logits, count)
        by_hand = np.lexsort((np.broadcast_to(np.arange(3000), (20, 3000)), -logits.numpy()))
        assert tokens.tolist() == by_hand[:, :count].tolist()
        assert torch.equal(values, logits.gather(1, tokens))
        ranked = _ranked(logits, min(count, 3000))
        assert torch.equal(ranked[1], tokens)


def test_rows_may_be_at_different_steps() -> None:
    logits = torch.randn(4, 90, generator=torch.Generator().manual_seed(3))
    keys = torch.tensor([5, -7, 2**62, -(2**63)])
    settings = CaptionSettings(top_k=40, temperature=2.0)
    steps = [0, 3, 17, 39]
    together, _ = draw_tokens(logits, keys, torch.tensor(steps), settings)
    alone = [
        int(sample_tokens(logits[row : row + 1], keys[row : row + 1], step, settings))
        for row, step in enumerate(steps)
    ]
    assert together.tolist() == alone


def test_only_rows_with_nan_are_marked() -> None:
    logits = torch.zeros(3, 40)
    logits[1, 9], logits[2, 3] = torch.nan, torch.inf
    for temperature in (0.0, 1.0):
        settings = CaptionSettings(top_k=5, temperature=temperature)
        _, is_nan = draw_tokens(logits, torch.zeros(3, dtype=torch.int64), 0, settings)
        assert is_nan.tolist() == [False, True, False]

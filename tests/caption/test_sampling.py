"""The noise is SplitMix64, and the draws follow the top-K softmax."""

import hashlib
import math

import numpy as np
import torch
from scipy import stats

from capmix.caption.sampling import caption_key, gumbel_noise, sample_tokens
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

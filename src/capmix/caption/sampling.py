"""Top-K sampling whose randomness belongs to the caption, not to the batch.

The largest of log-probabilities + Gumbel noise is an exact draw from their softmax (Gumbel-max,
Maddison et al., arXiv 1411.0030). The noise of a token is a hash of (seed, uid, source, k, step,
token), so that a caption does not depend on its batch, its neighbours or the order of the work.
"""

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from capmix.caption.settings import CaptionSettings

if TYPE_CHECKING:
    import torch

# SplitMix64 (Steele, Lea, Flood 2014), as signed 64-bit integers.
INCREMENT = 0x9E3779B97F4A7C15 - 2**64
FIRST = 0xBF58476D1CE4E5B9 - 2**64
SECOND = 0x94D049BB133111EB - 2**64


def caption_key(seed: int, uid: str, source: str, k: int) -> int:
    """The signed 64-bit key that all noise of one caption comes from."""
    digest = hashlib.sha256(f"{seed}/{uid}/{source}/{k}".encode()).digest()
    return int.from_bytes(digest[:8], "big", signed=True)


def caption_keys(seed: int, uids: Sequence[str], source: str, k: int) -> "torch.Tensor":
    """Keys of caption `k` of several images, int64 (N,)."""
    import torch

    return torch.tensor([caption_key(seed, uid, source, k) for uid in uids], dtype=torch.int64)


def gumbel_noise(keys: "torch.Tensor", step: int, tokens: "torch.Tensor") -> "torch.Tensor":
    """Standard Gumbel noise, float64 (N, K), of tokens int64 (N, K) at a step, by keys (N,)."""
    offset = (step * INCREMENT + 2**63) % 2**64 - 2**63
    bits = _mix(_mix(keys + offset).unsqueeze(1) + tokens * INCREMENT)
    uniform = (_shift(bits, 11).double() + 0.5) * 2.0**-53
    return -(-uniform.log()).log()


def sample_tokens(
    logits: "torch.Tensor", keys: "torch.Tensor", step: int, settings: CaptionSettings
) -> "torch.Tensor":
    """Draw one token per row, int64 (N,), from logits (N, V) at a step of the caption.

    From the softmax of the `top_k` largest / `temperature`, as the settings have them; temperature
    0 takes the largest. Raises ValueError for NaN, which any choice would hide.
    """
    temperature = settings.temperature
    count = 1 if temperature == 0 else min(settings.top_k, logits.shape[-1])
    values, tokens = logits.topk(count, dim=-1)
    if bool(values[:, 0].isnan().any()):  # NaN counts as the largest
        raise ValueError("the model gave NaN for a token")
    if temperature == 0:
        return logits.argmax(dim=-1)
    noisy = values.double() / temperature + gumbel_noise(keys, step, tokens)
    return tokens.gather(1, noisy.argmax(dim=1, keepdim=True)).squeeze(1)


def _mix(bits: "torch.Tensor") -> "torch.Tensor":
    """SplitMix64's finaliser; int64 products wrap as unsigned ones do."""
    bits = (bits ^ _shift(bits, 30)) * FIRST
    bits = (bits ^ _shift(bits, 27)) * SECOND
    return bits ^ _shift(bits, 31)


def _shift(bits: "torch.Tensor", places: int) -> "torch.Tensor":
    """Logical shift to the right of signed integers."""
    return (bits >> places) & ((1 << (64 - places)) - 1)

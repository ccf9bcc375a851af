"""Top-K sampling with randomness that is seeded per caption, not per batch.

The argmax of log-probabilities + Gumbel noise is an exact draw from their softmax (Gumbel-max,
Maddison et al., arXiv 1411.0030). The noise of a token is a hash of (seed, uid, source, k, step,
token), so a caption does not depend on its batch or on the order of the work.
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
    """Return the signed 64-bit key that seeds all noise of one caption."""
    digest = hashlib.sha256(f"{seed}/{uid}/{source}/{k}".encode()).digest()
    return int.from_bytes(digest[:8], "big", signed=True)


def caption_keys(seed: int, uids: Sequence[str], source: str, k: int) -> "torch.Tensor":
    """Return the keys of caption `k` of N images, int64 (N,)."""
    import torch

    return torch.tensor([caption_key(seed, uid, source, k) for uid in uids], dtype=torch.int64)


def gumbel_noise(keys: "torch.Tensor", step: int, tokens: "torch.Tensor") -> "torch.Tensor":
    """Return standard Gumbel noise, float64 (N, K), for keys (N,) and tokens int64 (N, K)."""
    offset = (step * INCREMENT + 2**63) % 2**64 - 2**63
    bits = _mix(_mix(keys + offset).unsqueeze(1) + tokens * INCREMENT)
    uniform = (_shift(bits, 11).double() + 0.5) * 2.0**-53
    return -(-uniform.log()).log()


def sample_tokens(
    logits: "torch.Tensor", keys: "torch.Tensor", step: int, settings: CaptionSettings
) -> "torch.Tensor":
    """Draw one token per row, int64 (N,), from logits (N, V) at position `step` of the caption.

    Samples from the softmax of the `top_k` largest logits / `temperature`, both from `settings`.
    Temperature 0 selects the largest logit. Raises ValueError for NaN logits.
    """
    temperature = settings.temperature
    count = 1 if temperature == 0 else min(settings.top_k, logits.shape[-1])
    values, tokens = logits.topk(count, dim=-1)
    if bool(values[:, 0].isnan().any()):  # topk ranks NaN first
        raise ValueError("the model returned NaN logits")
    if temperature == 0:
        return logits.argmax(dim=-1)
    noisy = values.double() / temperature + gumbel_noise(keys, step, tokens)
    return tokens.gather(1, noisy.argmax(dim=1, keepdim=True)).squeeze(1)


def _mix(bits: "torch.Tensor") -> "torch.Tensor":
    """Apply SplitMix64's finaliser. Signed int64 products wrap like unsigned ones."""
    bits = (bits ^ _shift(bits, 30)) * FIRST
    bits = (bits ^ _shift(bits, 27)) * SECOND
    return bits ^ _shift(bits, 31)


def _shift(bits: "torch.Tensor", places: int) -> "torch.Tensor":
    """Shift signed integers right logically."""
    return (bits >> places) & ((1 << (64 - places)) - 1)

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
SPARE_RANKS = 16  # on a CPU, more equal logits than these cost a slower selection
NAN_LOGITS = "the model returned NaN logits"


def caption_key(seed: int, uid: str, source: str, k: int) -> int:
    """Return the signed 64-bit key that seeds all noise of one caption."""
    digest = hashlib.sha256(f"{seed}/{uid}/{source}/{k}".encode()).digest()
    return int.from_bytes(digest[:8], "big", signed=True)


def caption_keys(seed: int, uids: Sequence[str], source: str, k: int) -> "torch.Tensor":
    """Return the keys of caption `k` of N images, int64 (N,)."""
    import torch

    return torch.tensor([caption_key(seed, uid, source, k) for uid in uids], dtype=torch.int64)


def gumbel_noise(
    keys: "torch.Tensor", step: "int | torch.Tensor", tokens: "torch.Tensor"
) -> "torch.Tensor":
    """Return standard Gumbel noise, float64 (N, K), for keys (N,) and tokens int64 (N, K).

    `step` is the position in the caption, from 0: one for all rows, or int64 (N,).
    """
    offset = step * INCREMENT if not isinstance(step, int) else _wrapped(step * INCREMENT)
    bits = _mix(_mix(keys + offset).unsqueeze(1) + tokens * INCREMENT)
    uniform = (_shift(bits, 11).double() + 0.5) * 2.0**-53
    return -(-uniform.log()).log()


def sample_tokens(
    logits: "torch.Tensor", keys: "torch.Tensor", step: int, settings: CaptionSettings
) -> "torch.Tensor":
    """Draw one token per row, int64 (N,), as `draw_tokens` does. Raises ValueError for NaN logits.

    Waits for the GPU.
    """
    tokens, is_nan = draw_tokens(logits, keys, step, settings)
    if bool(is_nan.any()):
        raise ValueError(NAN_LOGITS)
    return tokens


def draw_tokens(
    logits: "torch.Tensor",
    keys: "torch.Tensor",
    step: "int | torch.Tensor",
    settings: CaptionSettings,
) -> tuple["torch.Tensor", "torch.Tensor"]:
    """Draw one token per row, int64 (N,), from logits (N, V) at position `step` of the captions.

    Samples from the softmax of the `top_k` largest logits / `temperature`, both from `settings`.
    Temperature 0 selects the largest logit. Of equal logits, the lower token id comes first. Also
    returns whether the row has NaN, bool (N,); its token is arbitrary. Never waits for the GPU.
    """
    if settings.temperature == 0:
        return logits.argmax(dim=-1), logits.amax(dim=-1).isnan()
    values, tokens = top_tokens(logits, settings.top_k)
    noisy = values.double() / settings.temperature + gumbel_noise(keys, step, tokens)
    drawn = tokens.gather(1, noisy.argmax(dim=1, keepdim=True)).squeeze(1)
    return drawn, logits.amax(dim=-1).isnan()


def top_tokens(logits: "torch.Tensor", count: int) -> tuple["torch.Tensor", "torch.Tensor"]:
    """Return the `count` largest of logits (N, V) and their token ids, int64 (N, `count`).

    Of equal logits, which are common in bfloat16, the lower ids are chosen; `topk` alone may choose
    any, depending on the device and on the shape of the batch.
    """
    count = min(count, logits.shape[-1])
    if logits.is_cuda:
        return _ranked(logits, count)
    more = min(count + SPARE_RANKS, logits.shape[-1])
    values, tokens = logits.topk(more, dim=-1)
    if more < logits.shape[-1] and bool((values[:, -1] == values[:, count - 1]).any()):
        return _ranked(logits, count)
    tokens, order = tokens.sort(dim=-1)
    values, by_value = values.gather(1, order).sort(dim=-1, descending=True, stable=True)
    return values[:, :count], tokens.gather(1, by_value)[:, :count]


def _ranked(logits: "torch.Tensor", count: int) -> tuple["torch.Tensor", "torch.Tensor"]:
    """Return `top_tokens` by one selection among integers ordered by (logit, -id).

    The bits of a float, with those below the sign inverted if it is negative, are ordered like the
    floats. Adding zero turns -0.0, whose bits differ, into 0.0.
    """
    import torch

    bits = (logits.float() + 0.0).contiguous().view(torch.int32)
    ordered = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).long()
    ids = torch.arange(logits.shape[-1], device=logits.device)
    best = ((ordered << 32) - ids).topk(count, dim=-1).values
    tokens = -best & 0xFFFFFFFF
    return logits.gather(1, tokens), tokens


def _wrapped(value: int) -> int:
    """Reduce an integer to a signed one of 64 bits."""
    return (value + 2**63) % 2**64 - 2**63


def _mix(bits: "torch.Tensor") -> "torch.Tensor":
    """Apply SplitMix64's finaliser. Signed int64 products wrap like unsigned ones."""
    bits = (bits ^ _shift(bits, 30)) * FIRST
    bits = (bits ^ _shift(bits, 27)) * SECOND
    return bits ^ _shift(bits, 31)


def _shift(bits: "torch.Tensor", places: int) -> "torch.Tensor":
    """Shift signed integers right logically."""
    return (bits >> places) & ((1 << (64 - places)) - 1)

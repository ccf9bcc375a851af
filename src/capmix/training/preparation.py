"""How images and texts become the tensors of a training batch.

What is the same for every pixel and every text is done for the whole batch: scaling and normalising
pixels, and tokenizing. The tensors equal those of open_clip's own transform and tokenizer bit for
bit.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from capmix.models.open_clip_tokens import BpeTokenizer, is_plain_bpe

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Preparation:
    """Functions that prepare samples.

    `crop` takes a decoded image; `stack` takes the results for a batch and returns float32
    (N, 3, H, W); `tokenize` takes N texts and returns int64 (N, length).
    """

    crop: Callable[[Any], Any]
    stack: Callable[[Sequence[Any]], "torch.Tensor"]
    tokenize: Callable[[Sequence[str]], "torch.Tensor"]


def prepare_with(preprocess: Any, tokenizer: Any) -> Preparation:
    """Return the preparation of an open_clip training transform and a tokenizer."""
    import torch
    from torchvision.transforms import Compose, Normalize, ToTensor, functional

    tokenize = _batch_tokenizer(tokenizer)
    steps = list(getattr(preprocess, "transforms", []))
    if len(steps) < 2 or not isinstance(steps[-2], ToTensor) or type(steps[-1]) is not Normalize:
        return Preparation(preprocess, lambda crops: torch.stack(list(crops)), tokenize)
    *crops, to_tensor, normalize = steps

    def stack(images: Sequence[Any]) -> "torch.Tensor":
        if any(getattr(image, "mode", None) != "RGB" for image in images):
            return torch.stack([normalize(to_tensor(image)) for image in images])
        pixels = torch.from_numpy(np.stack([np.asarray(image) for image in images]))
        scaled = pixels.permute(0, 3, 1, 2).contiguous().to(torch.float32).div_(255)
        functional.normalize(scaled, normalize.mean, normalize.std, inplace=True)
        return scaled

    return Preparation(Compose(crops), stack, tokenize)


def _batch_tokenizer(tokenizer: Any) -> Callable[[Sequence[str]], "torch.Tensor"]:
    """Return a tokenizer of lists of texts, in Rust if it is a plain one.

    The reductions of texts that are too long draw random numbers, and stay with open_clip.
    """
    import torch

    if not is_plain_bpe(tokenizer) or tokenizer.reduction_fn is not None:
        return lambda texts: torch.as_tensor(tokenizer(list(texts)))
    # Each data worker has its share of the cores.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    tokenize = BpeTokenizer(tokenizer)
    return lambda texts: torch.from_numpy(np.stack(tokenize(texts).inputs))

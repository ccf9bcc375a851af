"""Scores by any open_clip model: `ARCHITECTURE/TAG`, `local-dir:FOLDER` or `hf-hub:ID`.

TAG is a pretrained tag or a checkpoint file. Texts are sorted by length and cut to the longest of
their batch: what follows the end token cannot reach it through a causal mask, so the vectors stay
the same and short captions cost a fraction of the 77 positions.
"""

import hashlib
import os
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from capmix.errors import UserError
from capmix.models.device import fingerprint
from capmix.models.image_pass import unit

SCHEMES = ("local-dir:", "hf-hub:")
TEXT_BATCH = 256
PRECISIONS = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}


class OpenClipEncoder:
    """The image side: unit vectors of the model's own preprocessing."""

    def __init__(
        self, name: str, model: Any, preprocess: Any, device: str, dtype: Any, exact: bool
    ):
        self.name = name
        self.input_side = None if exact else input_side(model)
        self.workers = max(2, min(16, os.cpu_count() or 2))
        self.batch_size = 32 if device == "cpu" else 256
        self._model, self._preprocess, self._device, self._dtype = model, preprocess, device, dtype
        self.dimensions = _dimensions(model)

    def load(self) -> None:
        """The weights came with the constructor."""

    def prepare(self, image: Image.Image) -> Any:
        """Pixels float32 (3, H, W) of an RGB image."""
        return self._preprocess(image).numpy()

    def encode_pixels(self, pixels: Sequence[np.ndarray]) -> np.ndarray:
        """Unit vectors, float32 (N, D)."""
        import torch

        with torch.inference_mode():
            batch = torch.from_numpy(np.stack(pixels)).to(self._device, self._dtype)
            features = self._model.encode_image(batch, normalize=True)
        vectors: np.ndarray = features.float().cpu().numpy()
        return vectors


class OpenClipScorer:
    """Cosine similarity by one open_clip model.

    Raises UserError where the model cannot be loaded, or where its activation does not fit its
    weights.
    """

    def __init__(
        self,
        model: str,
        name: str,
        device: str,
        dtype: Any,
        exact_decode: bool = False,
        logit_bias: float | None = None,
    ):
        self.name = name
        loaded = load_open_clip(model, device, dtype, logit_bias)
        self._model, self._preprocess, self._tokenizer = loaded
        self._device = device
        self.encoder = OpenClipEncoder(
            name, self._model, self._preprocess, device, dtype, exact_decode
        )
        self.settings: dict[str, Any] = {
            "model": model,
            "weights": fingerprint(weights_path(model)),
            "dtype": str(dtype).removeprefix("torch."),
        }

    def project_images(self, embeddings: np.ndarray) -> np.ndarray:
        """Unit vectors, float32 (N, D): saved embeddings are float16."""
        return unit(embeddings)

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Unit vectors, float32 (N, D); equal texts are encoded once."""
        import torch

        unique = list(dict.fromkeys(texts))
        tokens = self._tokenizer(unique)
        lengths = _lengths(self._model, tokens)
        order = torch.argsort(lengths, stable=True)
        vectors = np.empty((len(unique), self.encoder.dimensions), np.float32)
        with torch.inference_mode():
            for rows in torch.split(order, TEXT_BATCH):
                batch = tokens[rows][:, : int(lengths[rows].max())].to(self._device)
                vectors[rows.numpy()] = _encode(self._model, batch).float().cpu().numpy()
        position = {text: row for row, text in enumerate(unique)}
        return vectors[[position[text] for text in texts]]

    def digest(self) -> str:
        """16 hex digits over every weight, the architecture and the preprocessing of images."""
        about = f"{self._model} {self._preprocess}"
        total = hashlib.sha256(re.sub(r" at 0x[0-9a-f]+", "", about).encode())
        for name, weight in sorted(self._model.state_dict().items()):
            values = weight.detach().float().cpu().contiguous().numpy()
            total.update(name.encode() + values.tobytes())
        return total.hexdigest()[:16]

    def too_long(self, texts: Sequence[str]) -> list[bool]:
        """Which texts lose their end to the context length (the end token is kept)."""
        limit = self._tokenizer.context_length
        inner = getattr(self._tokenizer, "tokenizer", None)
        if inner is not None:
            return [len(ids) > limit for ids in inner(list(texts)).input_ids]
        return [len(self._tokenizer.encode(text)) + 2 > limit for text in texts]


def load_open_clip(
    name: str, device: str, dtype: Any, logit_bias: float | None = None
) -> tuple[Any, Any, Any]:
    """The model in evaluation mode, its preprocessing for inference, and its tokenizer.

    `logit_bias` is for checkpoints of SigLIP's loss, whose models have such a parameter.
    """
    try:
        import open_clip
    except ImportError as error:
        raise UserError(f"model {name}: pip install 'capmix[open_clip]'") from error
    architecture, _, tag = (name, "", "") if name.startswith(SCHEMES) else name.partition("/")
    if not name.startswith(SCHEMES):
        _check_names(name, architecture, tag)
    try:
        model, _, preprocess = open_clip.create_model_and_transforms(
            architecture,
            pretrained=tag or None,
            precision=PRECISIONS[str(dtype).removeprefix("torch.")],
            device=device,
            **({} if logit_bias is None else {"init_logit_bias": logit_bias}),
        )
        tokenizer = open_clip.get_tokenizer(architecture)
    except Exception as error:  # open_clip, hubs and torch raise many types here
        first = " ".join(str(error).split())[:300]
        raise UserError(f"model {name}: cannot be loaded ({first})") from error
    return model.eval(), preprocess, tokenizer


def input_side(model: Any) -> int:
    """The longer side of the image that the model reads, in pixels."""
    size = model.visual.image_size
    return max(size) if isinstance(size, Sequence) else int(size)


def weights_path(name: str) -> str:
    """Where a model's own weights lie on this disk, if its name says so; else no such path."""
    scheme = next((s for s in SCHEMES if name.startswith(s)), None)
    return name.removeprefix(scheme) if scheme else name.partition("/")[2]


def _check_names(name: str, architecture: str, tag: str) -> None:
    """Tell an unknown architecture or tag, and an activation that does not fit the weights."""
    import open_clip

    if architecture not in open_clip.list_models():
        raise UserError(
            f"model {name}: open_clip has no architecture {architecture!r}; expected "
            "ARCHITECTURE/TAG, such as ViT-L-14-quickgelu/openai"
        )
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    known = open_clip.get_pretrained_cfg(architecture, tag) or {}
    if not known and not os.path.isfile(tag):
        raise UserError(
            f"model {name}: {tag!r} is neither a pretrained tag of {architecture} "
            f"({', '.join(tags) or 'it has none'}) nor a file"
        )
    has = bool((open_clip.get_model_config(architecture) or {}).get("quick_gelu", False))
    if known and bool(known.get("quick_gelu", False)) != has:
        other = architecture.removesuffix("-quickgelu") if has else f"{architecture}-quickgelu"
        trained = "without" if has else "with"
        raise UserError(
            f"model {name}: these weights were trained {trained} QuickGELU and would give wrong "
            f"scores; use {other}/{tag}"
        )


def _lengths(model: Any, tokens: Any) -> Any:
    """Positions that each text needs, int64 (N,): up to its end token, where that is sound."""
    import torch

    if not _is_causal_clip(model):
        return torch.full((len(tokens),), tokens.shape[1])
    return tokens.argmax(dim=1) + 1


def _encode(model: Any, tokens: Any) -> Any:
    """`model.encode_text`, normalised, of tokens (N, L) that may be shorter than the context."""
    if not _is_causal_clip(model):
        return model.encode_text(tokens, normalize=True)
    import torch
    from open_clip.transformer import text_global_pool

    length = tokens.shape[1]
    dtype = model.transformer.get_cast_dtype()
    x = model.token_embedding(tokens).to(dtype)
    x = x + model.positional_embedding[:length].to(dtype)
    x = model.transformer(x, attn_mask=model.attn_mask[:length, :length])
    x = text_global_pool(model.ln_final(x), tokens, "argmax")
    projection = model.text_projection
    x = projection(x) if isinstance(projection, torch.nn.Linear) else x @ projection
    return torch.nn.functional.normalize(x, dim=-1)


def _is_causal_clip(model: Any) -> bool:
    """The plain CLIP class, with a causal mask and the end token's vector."""
    import open_clip

    return (
        type(model) is open_clip.CLIP
        and model.text_pool_type == "argmax"
        and getattr(model, "attn_mask", None) is not None
        and model.text_projection is not None
    )


def _dimensions(model: Any) -> int:
    visual = model.visual
    return int(getattr(visual, "output_dim", 0) or model.text_projection.shape[1])

"""Score with any open_clip model; models/open_clip.py describes the model names.

Texts are sorted by length and trimmed to the longest of their batch. With a causal mask, positions
after the end token do not affect its vector, so the results are the same and short captions cost a
fraction of the 77 positions.
"""

import hashlib
import re
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from capmix.models.device import (
    device_and_dtype,
    preparing_threads,
    provenance,
)
from capmix.models.image_pass import unit
from capmix.models.images import BadImageError, Preprocess, check_resized
from capmix.models.open_clip import (
    check_open_clip,
    identity,
    input_side,
    load_open_clip,
    shorter_side,
)
from capmix.models.open_clip_tokens import open_clip_tokenizer
from capmix.models.openvino_tower import (
    EXAMPLE_TEXTS,
    OpenVinoTower,
    Runtime,
    check_openvino,
    torch_dtype,
)
from capmix.models.pixels import PixelLoader, pixels_note, transform_plan
from capmix.models.tokens import Tokens
from capmix.score.settings import ScoreSettings

PREFIX = "open_clip:"
TEXT_BATCH = 256
PACKAGES = ("torch", "open-clip-torch")


class OpenClipEncoder:
    """The image tower with the model's own transform; returns unit vectors."""

    def __init__(
        self,
        name: str,
        model: Any,
        transform: Any,
        device: str,
        dtype: Any,
        exact: bool,
        preprocess: Preprocess = "capmix",
    ):
        self.name, self.preprocess = name, preprocess
        self.input_side = None if exact else input_side(model)
        self._shorter_side = shorter_side(model)
        self.workers = preparing_threads()
        self.batch_size = 32 if device == "cpu" else 256
        self._model, self._transform, self._device, self._dtype = model, transform, device, dtype
        self.dimensions = _dimensions(model)
        is_fast = not exact and preprocess == "capmix"
        self.pixels = transform_plan(transform) if is_fast else None
        self._load = PixelLoader(self.pixels, device) if self.pixels else None
        self._note = pixels_note(self.pixels, exact or preprocess == "open_clip")
        self.weights: str | None = None
        self._encode: Callable[[Any], Any] = partial(model.encode_image, normalize=True)
        self.provenance = provenance(PACKAGES, device, self.batch_size) | self._note

    def load(self) -> None:
        """Do nothing: the constructor receives the loaded model."""

    def prepare(self, image: Image.Image) -> Any:
        """Preprocess an image to pixels, float32 (3, H, W).

        The image is RGB, or of any mode with `preprocess` "open_clip". Raises BadImageError if its
        aspect ratio is too extreme or the transform does not support its mode.
        """
        check_resized(image.size, self._shorter_side)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Pillow warns about dropped transparency
                return self._transform(image).numpy()
        except (ValueError, OSError, TypeError) as error:
            raise BadImageError("broken_image", f"mode {image.mode}: {error}") from error

    def encode_pixels(self, pixels: Sequence[np.ndarray]) -> np.ndarray:
        """Return unit vectors, float32 (N, D). `pixels` are of `prepare`, or uint8 of the plan."""
        import torch

        with torch.inference_mode():
            if self._load is not None and pixels[0].dtype == np.uint8:
                batch = self._load(pixels, self._dtype)
            else:
                batch = torch.from_numpy(np.stack(pixels)).to(self._device, self._dtype)
            features = self._encode(batch)
        vectors: np.ndarray = features.float().cpu().numpy()
        return vectors

    def run_in_openvino(self, tower: OpenVinoTower) -> None:
        """Embed with `tower`, the model's image tower without normalisation."""
        self._encode, self.embedded_with = tower.unit, tower.settings
        packages = (*PACKAGES, "openvino")
        self.provenance = provenance(packages, self._device, self.batch_size) | self._note


class OpenClipScorer:
    """Scores by the cosine similarity of an open_clip model.

    Raises UserError if the model cannot be loaded, or if its activation function does not match its
    weights.
    """

    extra: ClassVar[str | None] = "open_clip"
    packages: ClassVar[tuple[str, ...]] = ("torch", "open_clip", "tokenizers")
    device: ClassVar[str] = "gpu"
    keeps_embeddings: ClassVar[bool] = False
    preprocesses: ClassVar[tuple[Preprocess, ...]] = ("capmix", "open_clip")
    runtimes: ClassVar[tuple[Runtime, ...]] = ("torch", "openvino")

    def __init__(self, settings: ScoreSettings, unfinished: bool = False):
        """Load the model. `unfinished` accepts a training run that is not finished."""
        model = settings.model.removeprefix(PREFIX)
        self.name = settings.name
        _check(settings, unfinished)  # before torch is loaded, which takes seconds
        device = check_openvino(settings.runtime, settings.device, settings.dtype)
        device, dtype = device_and_dtype(device, settings.dtype)
        loads = torch_dtype(settings.runtime, dtype)
        loaded = load_open_clip(model, device, loads, unfinished)
        self._model, self._preprocess, tokenizer = loaded
        self._tokenize = open_clip_tokenizer(tokenizer)
        self._device = device
        self.encoder = OpenClipEncoder(
            self.name,
            self._model,
            self._preprocess,
            device,
            loads,
            settings.exact_decode,
            settings.preprocess,
        )
        self._encode_tokens: Callable[[Any], Any] = partial(_encode, self._model)
        self.settings: dict[str, Any] = {
            **identity(model),
            "dtype": str(dtype).removeprefix("torch."),
            "preprocess": settings.preprocess,
            "runtime": settings.runtime,
        }
        self.encoder.weights = self.settings["weights"]
        if settings.runtime == "openvino":
            self._use_openvino(self.settings["dtype"], tokenizer)
        self.provenance = self.encoder.provenance

    @staticmethod
    def check(settings: ScoreSettings) -> bool:
        """Raise UserError if the model is known to be unavailable. Does not load torch."""
        return _check(settings)

    def _use_openvino(self, dtype: str, tokenizer: Any) -> None:
        """Compile both towers. Raises UserError if that is not possible."""
        import torch

        name, model, encoder = f"scorer {self.settings['model']}", self._model, self.encoder
        size = model.visual.image_size
        sides = tuple(size) if isinstance(size, Sequence) else (size, size)
        pixels = torch.randn(3, 3, *sides, generator=torch.Generator().manual_seed(0))
        images = partial(model.encode_image, normalize=False)
        encoder.run_in_openvino(OpenVinoTower(name, model, images, [pixels[:2]], [pixels], dtype))
        tokens = tokenizer(EXAMPLE_TEXTS)
        lengths = _lengths(model, tokens)
        shorter, longer = (tokens[rows][:, : lengths[rows].max()] for rows in ([0, 0], [0, 1, 2]))
        texts = partial(_encode, model, normalize=False)
        tower = OpenVinoTower(name, model, texts, [shorter], [longer], dtype)
        self._encode_tokens = tower.unit

    def project_images(self, embeddings: np.ndarray) -> np.ndarray:
        """Normalise to unit vectors, float32 (N, D): saved embeddings are float16."""
        return unit(embeddings)

    def tokenize(self, texts: Sequence[str]) -> Tokens:
        """Tokenize like open_clip. A text is truncated to the context, keeping the end token."""
        return self._tokenize(texts)

    def encode_tokens(self, inputs: Sequence[np.ndarray]) -> np.ndarray:
        """Return unit vectors, float32 (N, D), of N texts' ids, int64 (context length,)."""
        import torch

        tokens = torch.from_numpy(np.stack(inputs))
        lengths = _lengths(self._model, tokens)
        order = torch.argsort(lengths, stable=True)
        found = []
        with torch.inference_mode():
            for rows in torch.split(order, TEXT_BATCH):
                batch = tokens[rows][:, : int(lengths[rows].max())].to(self._device)
                found.append(self._encode_tokens(batch).float())
        vectors = np.empty((len(inputs), self.encoder.dimensions), np.float32)
        vectors[order.numpy()] = torch.cat(found).cpu().numpy()  # waits for the device once
        return vectors

    def digest(self) -> str:
        """Return 16 hex digits of a hash of all weights, architecture and image preprocessing."""
        about = f"{self._model} {self._preprocess}"
        total = hashlib.sha256(re.sub(r" at 0x[0-9a-f]+", "", about).encode())
        for name, weight in sorted(self._model.state_dict().items()):
            values = weight.detach().float().cpu().contiguous().numpy()
            total.update(name.encode() + values.tobytes())
        return total.hexdigest()[:16]


def _check(settings: ScoreSettings, unfinished: bool = False) -> bool:
    check_openvino(settings.runtime, settings.device, settings.dtype)
    return check_open_clip(settings.model.removeprefix(PREFIX), unfinished)


def _lengths(model: Any, tokens: Any) -> Any:
    """Return the positions each text needs, int64 (N,): to its end token for causal CLIP."""
    import torch

    if not _is_causal_clip(model):
        return torch.full((len(tokens),), tokens.shape[1])
    return tokens.argmax(dim=1) + 1


def _encode(model: Any, tokens: Any, normalize: bool = True) -> Any:
    """Like `model.encode_text`, for tokens (N, L) shorter than the context."""
    if not _is_causal_clip(model):
        return model.encode_text(tokens, normalize=normalize)
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
    return torch.nn.functional.normalize(x, dim=-1) if normalize else x


def _is_causal_clip(model: Any) -> bool:
    """Return whether the model is a plain CLIP with a causal mask that pools the end token."""
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

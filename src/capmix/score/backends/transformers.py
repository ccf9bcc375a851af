"""Score with CLIP, SigLIP or SigLIP 2 of transformers, from a hub id or a local folder."""

import threading
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from capmix.engine.batches import batched
from capmix.errors import UserError
from capmix.models.device import (
    device_and_dtype,
    fingerprint,
    input_side,
    preparing_threads,
    provenance,
    shorter_side,
)
from capmix.models.hub import check_hub
from capmix.models.image_pass import unit
from capmix.models.images import check_resized
from capmix.models.pixels import PixelLoader, pixels_note, processor_plan
from capmix.models.tokens import Tokens, encode_truncated
from capmix.score.settings import ScoreSettings

PREFIX = "transformers:"
TEXT_BATCH = 256
SIGLIP_CONTEXT = 64  # tokens; its text tower was trained on texts padded to this length


class TransformersEncoder:
    """The image tower with the model's own preprocessing; returns unit vectors."""

    def __init__(self, name: str, model: Any, processor: Any, device: str, exact: bool):
        self.name = name
        self.workers = preparing_threads()
        self.batch_size = 32 if device == "cpu" else 256
        self.dimensions = int(
            getattr(model.config, "projection_dim", 0) or model.config.text_config.hidden_size
        )
        self._model, self._images, self._device = model, processor.image_processor, device
        self.input_side = None if exact else input_side(self._images)
        self._shorter_side = shorter_side(self._images)
        found = None if exact else processor_plan(self._images, self._inputs)
        self.pixels = found[0] if found and not found[1] else None
        self._load = PixelLoader(self.pixels, device) if self.pixels else None
        self.provenance = provenance(("torch", "transformers"), device, self.batch_size)
        self.provenance |= pixels_note(self.pixels, exact)

    def load(self) -> None:
        """Do nothing: the constructor receives the loaded model."""

    def prepare(self, image: Image.Image) -> Any:
        """Return the processor's arrays by name.

        `pixel_values` is float32 (3, H, W), except for NaFlex models. Raises BadImageError if the
        aspect ratio of the image is too extreme.
        """
        check_resized(image.size, self._shorter_side)
        return {name: array[0].numpy() for name, array in self._inputs(image).items()}

    def _inputs(self, image: Image.Image) -> Any:
        return self._images(images=image, return_tensors="pt")

    def encode_pixels(self, pixels: Sequence[Any]) -> np.ndarray:
        """Return unit vectors, float32 (N, D). `pixels` are of `prepare`, or uint8 of the plan."""
        import torch

        with torch.inference_mode():
            if self._load is not None and isinstance(pixels[0], np.ndarray):
                batch = {"pixel_values": self._load(pixels, self._model.dtype)}
            else:
                batch = self._joined(pixels)
            return _unit(self._model.get_image_features(**batch))

    def _joined(self, prepared: Sequence[dict[str, np.ndarray]]) -> dict[str, Any]:
        import torch

        batch = {}
        for name in prepared[0]:
            joined = torch.from_numpy(np.stack([one[name] for one in prepared])).to(self._device)
            batch[name] = joined.to(self._model.dtype) if joined.is_floating_point() else joined
        return batch


class TransformersScorer:
    """Scores by cosine similarity. Raises UserError if the model cannot be loaded."""

    extra: ClassVar[str | None] = "transformers"
    packages: ClassVar[tuple[str, ...]] = ("torch", "torchvision", "transformers")
    device: ClassVar[str] = "gpu"
    keeps_embeddings: ClassVar[bool] = False

    def __init__(self, settings: ScoreSettings):
        model = settings.model
        self.name = settings.name
        only_downloaded = self.check(settings)  # before torch is loaded, which takes seconds
        device, dtype = device_and_dtype(settings.device, settings.dtype)
        self._model, self._processor = _load(model, device, dtype, only_downloaded)
        self._device, self._lock = device, threading.Lock()
        limit = int(self._model.config.text_config.max_position_embeddings)
        is_siglip = "siglip" in self._model.config.model_type
        self._context = min(SIGLIP_CONTEXT, limit) if is_siglip else limit
        to_context = {"padding": "max_length", "max_length": self._context}
        self._padding: dict[str, Any] = to_context if is_siglip else {"padding": True}
        # Texts are tokenized ahead and padded later, against the advice that `pad` logs once.
        self._processor.tokenizer.deprecation_warnings["Asking-to-pad-a-fast-tokenizer"] = True
        self.encoder = TransformersEncoder(
            self.name, self._model, self._processor, device, settings.exact_decode
        )
        self.provenance = self.encoder.provenance
        self.settings: dict[str, Any] = {
            "model": model,
            "weights": fingerprint(model.removeprefix(PREFIX)),
            "revision": getattr(self._model.config, "_commit_hash", None),
            "dtype": str(dtype).removeprefix("torch."),
        }

    @staticmethod
    def check(settings: ScoreSettings) -> bool:
        """Return whether to load only local files. Raises UserError if the model is unavailable."""
        return check_hub(settings.model.removeprefix(PREFIX), f"scorer {settings.model}")

    def project_images(self, embeddings: np.ndarray) -> np.ndarray:
        """Normalise to unit vectors, float32 (N, D): saved embeddings are float16."""
        return unit(embeddings)

    def tokenize(self, texts: Sequence[str]) -> Tokens:
        """Run the model's tokenizer. A text is truncated to the context, keeping the end token."""
        with self._lock:
            rows, truncated = encode_truncated(self._processor.tokenizer, texts, self._context)
        texts_of_rows = zip(*rows.values(), strict=True)
        return Tokens([dict(zip(rows, one, strict=True)) for one in texts_of_rows], truncated)

    def encode_tokens(self, inputs: Sequence[dict[str, list[int]]]) -> np.ndarray:
        """Return unit vectors, float32 (N, D), of N texts' outputs of the tokenizer, unpadded."""
        import torch

        vectors = []
        with torch.inference_mode():
            for some in batched(inputs, TEXT_BATCH):
                pad = self._processor.tokenizer.pad
                tokens = pad(some, return_tensors="pt", **self._padding).to(self._device)
                vectors.append(_unit(self._model.get_text_features(**tokens)))
        return np.concatenate(vectors)


def _load(model: str, device: str, dtype: Any, only_downloaded: bool) -> tuple[Any, Any]:
    from transformers import AutoModel, AutoProcessor

    name = model.removeprefix(PREFIX)
    try:
        processor = AutoProcessor.from_pretrained(  # type: ignore[no-untyped-call]
            name, local_files_only=only_downloaded
        )
        loaded: Any = AutoModel.from_pretrained(
            name, use_safetensors=True, dtype=dtype, local_files_only=only_downloaded
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        first = " ".join(str(error).split())[:300]
        raise UserError(f"scorer {model}: cannot be loaded ({first})") from error
    if not hasattr(loaded, "logit_scale") or not hasattr(loaded, "get_text_features"):
        raise UserError(
            f"scorer {model}: {loaded.config.model_type} models do not embed images and texts in "
            "one space; expected CLIP, SigLIP or SigLIP 2"
        )
    return loaded.to(device).eval(), processor


def _unit(features: Any) -> np.ndarray:
    import torch

    vectors = features if torch.is_tensor(features) else features.pooler_output
    normalised: np.ndarray = torch.nn.functional.normalize(vectors.float(), dim=-1).cpu().numpy()
    return normalised

"""Score with CLIP, SigLIP or SigLIP 2 of transformers, from a hub id or a local folder."""

import os
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from capmix.errors import UserError
from capmix.models.device import device_and_dtype, fingerprint, input_side, provenance, shorter_side
from capmix.models.hub import check_hub
from capmix.models.image_pass import unit
from capmix.models.images import check_resized
from capmix.models.openvino_tower import (
    EXAMPLE_TEXTS,
    OpenVinoTower,
    Runtime,
    check_openvino,
    torch_dtype,
)
from capmix.score.settings import ScoreSettings

PREFIX = "transformers:"
TEXT_BATCH = 256
PACKAGES = ("torch", "transformers")
IN_OPENVINO = ("clip", "siglip")  # of one input size; SigLIP 2's of one size are siglip models
SIGLIP_CONTEXT = 64  # tokens; its text tower was trained on texts padded to this length


class TransformersEncoder:
    """The image tower with the model's own preprocessing; returns unit vectors."""

    def __init__(self, name: str, model: Any, processor: Any, device: str, exact: bool):
        self.name = name
        self.workers = max(2, min(16, os.cpu_count() or 2))
        self.batch_size = 32 if device == "cpu" else 256
        self.dimensions = int(
            getattr(model.config, "projection_dim", 0) or model.config.text_config.hidden_size
        )
        self._model, self._images, self._device = model, processor.image_processor, device
        self.input_side = None if exact else input_side(self._images)
        self._shorter_side = shorter_side(self._images)
        self._features: Callable[..., Any] = model.get_image_features
        self.provenance = provenance(PACKAGES, device, self.batch_size)

    def load(self) -> None:
        """Do nothing: the constructor receives the loaded model."""

    def prepare(self, image: Image.Image) -> Any:
        """Return the processor's arrays by name.

        `pixel_values` is float32 (3, H, W), except for NaFlex models. Raises BadImageError if the
        aspect ratio of the image is too extreme.
        """
        check_resized(image.size, self._shorter_side)
        arrays = self._images(images=image, return_tensors="np")
        return {name: array[0] for name, array in arrays.items()}

    def encode_pixels(self, pixels: Sequence[dict[str, np.ndarray]]) -> np.ndarray:
        """Return unit vectors, float32 (N, D)."""
        import torch

        batch = {}
        for name in pixels[0]:
            joined = torch.from_numpy(np.stack([one[name] for one in pixels])).to(self._device)
            batch[name] = joined.to(self._model.dtype) if joined.is_floating_point() else joined
        with torch.inference_mode():
            return _unit(self._features(**batch))

    def run_in_openvino(self, tower: OpenVinoTower) -> None:
        """Embed with `tower`, a function of `pixel_values`."""
        self._features, self.embedded_with = _by_name(tower), tower.settings
        self.provenance = provenance((*PACKAGES, "openvino"), self._device, self.batch_size)


class TransformersScorer:
    """Scores by cosine similarity. Raises UserError if the model cannot be loaded."""

    extra: ClassVar[str | None] = "transformers"
    packages: ClassVar[tuple[str, ...]] = ("torch", "torchvision", "transformers")
    device: ClassVar[str] = "gpu"
    keeps_embeddings: ClassVar[bool] = False
    runtimes: ClassVar[tuple[Runtime, ...]] = ("torch", "openvino")

    def __init__(self, settings: ScoreSettings):
        model = settings.model
        self.name = settings.name
        only_downloaded = self.check(settings)  # before torch is loaded, which takes seconds
        device = check_openvino(settings.runtime, settings.device, settings.dtype)
        device, dtype = device_and_dtype(device, settings.dtype)
        loads = torch_dtype(settings.runtime, dtype)
        self._model, self._processor = _load(
            model, device, loads, only_downloaded, settings.runtime
        )
        self._device = device
        self._limit = int(self._model.config.text_config.max_position_embeddings)
        self.encoder = TransformersEncoder(
            self.name, self._model, self._processor, device, settings.exact_decode
        )
        self._features: Callable[..., Any] = self._model.get_text_features
        self.settings: dict[str, Any] = {
            "model": model,
            "weights": fingerprint(model.removeprefix(PREFIX)),
            "revision": getattr(self._model.config, "_commit_hash", None),
            "dtype": str(dtype).removeprefix("torch."),
            "runtime": settings.runtime,
        }
        if settings.runtime == "openvino":
            self._use_openvino(self.settings["dtype"])
        self.provenance = self.encoder.provenance

    @staticmethod
    def check(settings: ScoreSettings) -> bool:
        """Return whether to load only local files. Raises UserError if the model is unavailable."""
        check_openvino(settings.runtime, settings.device, settings.dtype)
        return check_hub(settings.model.removeprefix(PREFIX), f"scorer {settings.model}")

    def _use_openvino(self, dtype: str) -> None:
        """Compile both towers. Raises UserError if that is not possible."""
        import torch

        name, model = f"scorer {self.settings['model']}", self._model
        side = int(model.config.vision_config.image_size)
        pixels = torch.randn(3, 3, side, side, generator=torch.Generator().manual_seed(0))
        pictures = _tensors_of(model.get_image_features, ["pixel_values"])
        self.encoder.run_in_openvino(
            OpenVinoTower(name, model, pictures, [pixels[:2]], [pixels], dtype)
        )
        shorter, longer = (self._tokens(EXAMPLE_TEXTS[:n]) for n in (2, 3))
        texts = _tensors_of(model.get_text_features, list(longer))
        example, other = list(shorter.values()), list(longer.values())
        self._features = _by_name(OpenVinoTower(name, model, texts, example, other, dtype))

    def project_images(self, embeddings: np.ndarray) -> np.ndarray:
        """Normalise to unit vectors, float32 (N, D): saved embeddings are float16."""
        return unit(embeddings)

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Return unit vectors, float32 (N, D). Equal texts are encoded once."""
        import torch

        unique = list(dict.fromkeys(texts))
        vectors = []
        with torch.inference_mode():
            for start in range(0, len(unique), TEXT_BATCH):
                tokens = self._tokens(unique[start : start + TEXT_BATCH]).to(self._device)
                vectors.append(_unit(self._features(**tokens)))
        position = {text: row for row, text in enumerate(unique)}
        found: np.ndarray = np.concatenate(vectors)[[position[text] for text in texts]]
        return found

    def _tokens(self, texts: Sequence[str]) -> Any:
        siglip = "siglip" in self._model.config.model_type
        padding = {"padding": "max_length", "max_length": min(SIGLIP_CONTEXT, self._limit)}
        how = padding if siglip else {"padding": True, "max_length": self._limit}
        return self._processor.tokenizer(list(texts), truncation=True, return_tensors="pt", **how)

    def too_long(self, texts: Sequence[str]) -> list[bool]:
        """Return whether each text is truncated to the context length (keeping the end token)."""
        ids = self._processor.tokenizer(list(texts)).input_ids
        return [len(row) > self._limit for row in ids]


def _load(
    model: str, device: str, dtype: Any, only_downloaded: bool, runtime: Runtime
) -> tuple[Any, Any]:
    from transformers import AutoConfig, AutoModel, AutoProcessor

    name = model.removeprefix(PREFIX)
    try:
        if runtime == "openvino":  # before the weights, which take long to load
            _check_runs_in_openvino(
                model, AutoConfig.from_pretrained(name, local_files_only=only_downloaded)
            )
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


def _check_runs_in_openvino(model: str, config: Any) -> None:
    if config.model_type not in IN_OPENVINO:
        raise UserError(
            f"scorer {model}: --runtime openvino supports only {' and '.join(IN_OPENVINO)} models, "
            f"and this is a {config.model_type} model; omit the option"
        )


def _tensors_of(features: Callable[..., Any], names: Sequence[str]) -> Callable[..., Any]:
    """Return a function of tensors, in the order of `names`, that calls `features` with these."""
    return lambda *tensors: _vectors(features(**dict(zip(names, tensors, strict=True))))


def _by_name(tower: OpenVinoTower) -> Callable[..., Any]:
    """Return the tower as a function of named tensors, which must be in the order of its inputs."""
    return lambda **tensors: tower(*tensors.values())


def _unit(features: Any) -> np.ndarray:
    import torch

    vectors = _vectors(features).float()
    normalised: np.ndarray = torch.nn.functional.normalize(vectors, dim=-1).cpu().numpy()
    return normalised


def _vectors(features: Any) -> Any:
    import torch

    return features if torch.is_tensor(features) else features.pooler_output

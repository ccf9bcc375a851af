"""Score with CLIP, SigLIP or SigLIP 2 of transformers, from a hub id or a local folder."""

import threading
from collections.abc import Callable, Sequence
from functools import partial
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
from capmix.models.openvino_tower import (
    EXAMPLE_TEXTS,
    OpenVinoTower,
    Runtime,
    check_openvino,
    torch_dtype,
)
from capmix.models.pixels import PixelLoader, pixels_note, processor_plan
from capmix.models.tokens import Tokens, encode_truncated
from capmix.models.transformers_loading import load_complete, loading
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
        self.weights: str | None = None
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
        self._note = pixels_note(self.pixels, exact)
        self._features: Callable[..., Any] = model.get_image_features
        self.provenance = provenance(PACKAGES, device, self.batch_size) | self._note

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
            return _unit(self._features(**batch))

    def _joined(self, prepared: Sequence[dict[str, np.ndarray]]) -> dict[str, Any]:
        import torch

        batch = {}
        for name in prepared[0]:
            joined = torch.from_numpy(np.stack([one[name] for one in prepared])).to(self._device)
            batch[name] = joined.to(self._model.dtype) if joined.is_floating_point() else joined
        return batch

    def run_in_openvino(self, tower: OpenVinoTower) -> None:
        """Embed with `tower`, a function of `pixel_values`."""
        self._features, self.embedded_with = _by_name(tower), tower.settings
        packages = (*PACKAGES, "openvino")
        self.provenance = provenance(packages, self._device, self.batch_size) | self._note


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
        self._features: Callable[..., Any] = self._model.get_text_features
        self.settings: dict[str, Any] = {
            "model": model,
            "weights": fingerprint(model.removeprefix(PREFIX)),
            "revision": getattr(self._model.config, "_commit_hash", None),
            "dtype": str(dtype).removeprefix("torch."),
            "runtime": settings.runtime,
        }
        self.encoder.weights = self.settings["weights"]
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
        how = {"truncation": True, "max_length": self._context, "return_tensors": "pt"}
        tokenizer = partial(self._processor.tokenizer, **(how | self._padding))
        shorter, longer = (tokenizer(EXAMPLE_TEXTS[:n]) for n in (2, 3))
        texts = _tensors_of(model.get_text_features, list(longer))
        example, other = list(shorter.values()), list(longer.values())
        self._features = _by_name(OpenVinoTower(name, model, texts, example, other, dtype))

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
                vectors.append(_unit(self._features(**tokens)))
        return np.concatenate(vectors)


def _load(
    model: str, device: str, dtype: Any, only_downloaded: bool, runtime: Runtime
) -> tuple[Any, Any]:
    from transformers import AutoConfig, AutoModel, AutoProcessor

    name = model.removeprefix(PREFIX)
    with loading(f"scorer {model}"):
        if runtime == "openvino":  # before the weights, which take long to load
            _check_runs_in_openvino(
                model, AutoConfig.from_pretrained(name, local_files_only=only_downloaded)
            )
        processor = AutoProcessor.from_pretrained(  # type: ignore[no-untyped-call]
            name, local_files_only=only_downloaded
        )
        options = {"dtype": dtype, "local_files_only": only_downloaded}
        loaded = load_complete(AutoModel, name, f"scorer {model}", options)
        loaded.to(device).eval()
    if not hasattr(loaded, "logit_scale") or not hasattr(loaded, "get_text_features"):
        raise UserError(
            f"scorer {model}: {loaded.config.model_type} models do not embed images and texts in "
            "one space; expected CLIP, SigLIP or SigLIP 2"
        )
    return loaded, processor


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

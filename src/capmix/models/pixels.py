"""Prepare images as uint8 pixels: the fast way to a model's input.

Most image processors resize, crop and normalize. Here, images are decoded by torchvision, resized
and cropped as uint8, joined to uint8 batches and normalized on the model's device. The pixels equal
those of transformers' processors; where the model's own processor resizes with Pillow, as
open_clip's does, about 1% of the values differ by one of 255 levels (benchmarks/prepare.py).
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from capmix.models.images import check_resized, decode_image, enlarged, plain_jpeg_size, spare_scale

INTERPOLATIONS = {2: "bilinear", 3: "bicubic"}  # as numbered by Pillow
CHANNELS = 3
# Divisor of a reduced decode: at 1/2, Pillow takes almost as long as torchvision for all pixels
# (benchmarks/prepare.py).
LEAST_SCALE = 4
UPLOAD = 32  # images per copy to a GPU
NO_DECODER = (AttributeError, ImportError)  # torchvision without its image extension
PROBES = ((97, 61), (40, 83))  # width and height of the pictures that test a plan
MOST_LEVELS = 2  # of 255, between torch and Pillow, each of which rounds twice
# Methods that subclasses of transformers' processors may have without changing the pixels.
HARMLESS = ("__init__", "to_dict", "__repr__")


@dataclass(frozen=True)
class PixelPlan:
    """What a model's processor does to an RGB image: resize, crop, normalize.

    `size` is the length of the shorter side after resizing, or (height, width). `crop` is the
    (height, width) that is cut from the center, if any; `rounds` is whether an offset of half a
    pixel is rounded (torchvision) or cut off (transformers). The input of the model is
    (pixels / divisor - mean) / std, for each channel.
    """

    size: int | tuple[int, int]
    crop: tuple[int, int] | None
    rounds: bool
    interpolation: str
    divisor: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Return the shape of prepared pixels: 3, height, width."""
        square = (self.size, self.size) if isinstance(self.size, int) else self.size
        return (CHANNELS, *(self.crop or square))

    def prepare(self, data: bytes, smallest: int = 1) -> np.ndarray:
        """Decode an image and return its pixels, uint8 (3, height, width).

        Before that, an image with a side shorter than `smallest` pixels is enlarged. The limits and
        errors are those of decode_image, with this exception for large images: a JPEG is decoded at
        1/4 or 1/8 if both sides remain at least twice the longer side of the model's input.

        Raises BadImageError.
        """
        input_side = max(self.shape[1:])
        size = plain_jpeg_size(data)
        if size and min(size) >= smallest and spare_scale(size, input_side) < LEAST_SCALE:
            check_resized(size, self._shorter_side)
            pixels = _decode_jpeg(data)
            if pixels is not None:
                return self._fit(pixels)
        image = decode_image(data, input_side=input_side, least_scale=LEAST_SCALE)
        return self.convert(enlarged(image, smallest))

    def convert(self, image: Image.Image) -> np.ndarray:
        """Return the pixels of an RGB image, uint8 (3, height, width). Raises BadImageError."""
        import torch

        check_resized(image.size, self._shorter_side)
        return self._fit(torch.from_numpy(np.array(image)).permute(2, 0, 1))

    def normalize(self, batch: Any, dtype: Any, moments: tuple[Any, Any] | None = None) -> Any:
        """Return the model's input for a batch of uint8 pixels: computed in float32, then `dtype`.

        `moments` is what `moments_on` has returned for the device of the batch. For processors of
        transformers and open_clip, float32 values equal theirs on the same pixels (with the PIL
        backend of transformers, up to rounding).
        """
        import torch

        values = batch.to(torch.float32)
        mean, std = moments or self.moments_on(values.device)
        if self.divisor != 1:
            values.div_(self.divisor)
        return values.sub_(mean).div_(std).to(dtype)

    def moments_on(self, device: Any) -> tuple[Any, Any]:
        """Return mean and standard deviation as float32 (3, 1, 1) on a device."""
        import torch

        mean, std = torch.tensor([self.mean, self.std], device=device)[:, :, None, None]
        return mean, std

    @property
    def _shorter_side(self) -> int | None:
        return self.size if isinstance(self.size, int) else None

    def _fit(self, pixels: Any) -> np.ndarray:
        """Resize and crop uint8 pixels (3, height, width) of any size."""
        from torchvision.transforms import InterpolationMode
        from torchvision.transforms.v2 import functional

        size = [self.size] if isinstance(self.size, int) else list(self.size)
        how = InterpolationMode(self.interpolation)
        resized = functional.resize(pixels, size, interpolation=how, antialias=True).numpy()
        _, height, width = self.shape
        spare = resized.shape[1] - height, resized.shape[2] - width
        top, left = (round(n / 2) if self.rounds else n // 2 for n in spare)
        # Copied by numpy: torch would share this small copy among threads, which takes longer.
        return np.ascontiguousarray(resized[:, top : top + height, left : left + width])


def _decode_jpeg(data: bytes) -> Any:
    """Return pixels uint8 (3, height, width), or None if Pillow must decide about the image."""
    import torch

    try:
        from torchvision.io import ImageReadMode, decode_jpeg

        encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        return decode_jpeg(encoded, ImageReadMode.RGB)
    except (RuntimeError, *NO_DECODER):
        return None


def pixels_note(plan: PixelPlan | None, exact: bool) -> dict[str, str]:
    """Return the entry of the provenance that says how pixels are made.

    `fast`: by a plan. `exact`: by the model's processor, from all pixels of the image. `reduced`:
    by the model's processor, from large JPEGs at reduced scale (decode_image).
    """
    return {"pixels": "fast" if plan else "exact" if exact else "reduced"}


class PixelLoader:
    """Brings prepared pixels to the model's device as its input.

    For a GPU, they pass through two buffers of page-locked memory: while one is copied, the other
    is filled. The copies are in the current stream of the calling thread; nothing waits for the
    model. To be used by one thread at a time.
    """

    def __init__(self, plan: PixelPlan, device: str):
        self._plan, self._device = plan, device
        self._buffers: list[_Buffer] = []
        self._moments = plan.moments_on(device)

    def __call__(self, pixels: Sequence[np.ndarray], dtype: Any) -> Any:
        """Return the model's input (N, 3, height, width) in `dtype` for N uint8 arrays."""
        import torch

        if self._device.startswith("cuda"):
            batch = self._upload(pixels)
        else:
            batch = torch.from_numpy(np.stack(pixels)).to(self._device)
        return self._plan.normalize(batch, dtype, self._moments)

    def _upload(self, pixels: Sequence[np.ndarray]) -> Any:
        import torch

        shape = self._plan.shape
        batch = torch.empty((len(pixels), *shape), dtype=torch.uint8, device=self._device)
        if not self._buffers:
            self._buffers = [_Buffer(shape), _Buffer(shape)]
        for turn, start in enumerate(range(0, len(pixels), UPLOAD)):
            some = pixels[start : start + UPLOAD]
            self._buffers[turn % 2].copy(some, batch[start : start + len(some)])
        return batch


class _Buffer:
    """Page-locked memory for UPLOAD images, and the event of its last copy to the GPU."""

    def __init__(self, shape: tuple[int, ...]):
        import torch

        self._host = torch.empty((UPLOAD, *shape), dtype=torch.uint8, pin_memory=True)
        self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]

    def copy(self, pixels: Sequence[np.ndarray], to: Any) -> None:
        """Start to copy images to a tensor on the GPU, in its current stream."""
        import torch

        self._copied.synchronize()  # returns at once before the first copy
        filled = self._host[: len(pixels)]
        np.stack(pixels, out=filled.numpy())
        to.copy_(filled, non_blocking=True)
        self._copied.record(torch.cuda.current_stream(to.device))


def transform_plan(transform: Any) -> PixelPlan | None:
    """Return the plan of open_clip's inference transform, or None if it has other steps.

    Supported are the resize modes `shortest`, with a square input, and `squash`.
    """
    from open_clip.transform import MaybeConvertMode, MaybeToTensor
    from torchvision.transforms import CenterCrop, Compose, Normalize, Resize

    steps = list(transform.transforms) if type(transform) is Compose else []
    crops = [step for step in steps if type(step) is CenterCrop]
    kinds = [Resize, *(CenterCrop for _ in crops), MaybeConvertMode, MaybeToTensor, Normalize]
    if [type(step) for step in steps] != kinds or steps[0].max_size is not None:
        return None
    size = steps[0].size if isinstance(steps[0].size, int) else tuple(steps[0].size)
    return _plan(
        size[0] if isinstance(size, tuple) and len(size) == 1 else size,
        tuple(crops[0].size) if crops else None,
        rounds=True,
        resample=steps[0].interpolation,
        divisor=255.0,
        mean=steps[-1].mean,
        std=steps[-1].std,
    )


def processor_plan(
    images: Any, run: Callable[[Image.Image], Mapping[str, Any]]
) -> tuple[PixelPlan, dict[str, Any]] | None:
    """Return the plan of an image processor of transformers, and the inputs that it does not make.

    `run` is the whole processor: it returns the model's inputs for one image, as tensors with a
    batch dimension of 1. The second value has those that are the same for all images, such as the
    tokens of the prompt.

    Returns None if the processor has other steps, or if the plan does not reproduce the pixels of
    two pictures: NaFlex, tiles, padding, other resampling.
    """
    plan = _settings_plan(images)
    if plan is None:
        return None
    first, second = ((picture, dict(run(picture))) for picture in map(_picture, PROBES))
    for picture, inputs in (first, second):
        if not _is_close(plan, picture, inputs.pop("pixel_values", None)):
            return None
    return (plan, first[1]) if _are_equal(first[1], second[1]) else None


def _picture(size: tuple[int, int]) -> Image.Image:
    """Return a picture with smooth areas and noise."""
    noise = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)


def _is_close(plan: PixelPlan, picture: Image.Image, values: Any) -> bool:
    """Return whether the values (1, 3, H, W) are the plan's up to MOST_LEVELS."""
    import torch

    if not torch.is_tensor(values) or tuple(values.shape) != (1, *plan.shape):
        return False
    own = plan.normalize(torch.from_numpy(plan.convert(picture))[None], torch.float32)
    levels = (own - values).abs() * torch.tensor(plan.std)[:, None, None] * plan.divisor
    return bool((levels < MOST_LEVELS + 0.01).all())


def _are_equal(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    import torch

    return one.keys() == other.keys() and all(
        torch.is_tensor(one[name]) and torch.equal(one[name], other[name]) for name in one
    )


def _settings_plan(images: Any) -> PixelPlan | None:
    """Return the plan that the settings of a transformers processor describe, or None."""
    is_torch = _backend_is_torch(images)
    wanted = ("do_resize", "do_rescale", "do_normalize")
    if is_torch is None or not all(getattr(images, name, False) for name in wanted):
        return None
    if getattr(images, "do_pad", False):
        return None
    size, crop = dict(images.size or {}), None
    if getattr(images, "do_center_crop", False):
        crop = (images.crop_size["height"], images.crop_size["width"])
    if set(size) not in ({"shortest_edge"}, {"height", "width"}):
        return None
    divisor, mean, std = 1 / images.rescale_factor, images.image_mean, images.image_std
    if is_torch:  # computed in float32, as there
        import torch

        mean, std = ((torch.tensor(v) * divisor).tolist() for v in (mean, std))
        divisor = 1.0
    return _plan(
        size.get("shortest_edge") or (size["height"], size["width"]),
        crop,
        rounds=False,
        resample=images.resample,
        divisor=divisor,
        mean=mean,
        std=std,
    )


def _backend_is_torch(images: Any) -> bool | None:
    """Return whether a processor is one of transformers' torch (else Pillow) backend.

    Returns None if its class changes a step of its backend, or has another one.
    """
    try:
        from transformers.image_processing_backends import PilBackend, TorchvisionBackend
    except ImportError:
        return None
    for backend in (TorchvisionBackend, PilBackend):
        kinds = type(images).__mro__
        if backend in kinds:
            own = kinds[: kinds.index(backend)]
            changes = any(_is_step(name, v) for kind in own for name, v in vars(kind).items())
            return None if changes else backend is TorchvisionBackend
    return None


def _is_step(name: str, member: Any) -> bool:
    is_code = inspect.isfunction(member) or isinstance(member, property | classmethod)
    return is_code and name not in HARMLESS and not name.startswith("post_process")


def _plan(
    size: int | tuple[int, int],
    crop: tuple[int, int] | None,
    *,
    rounds: bool,
    resample: Any,
    divisor: float,
    mean: Sequence[float],
    std: Sequence[float],
) -> PixelPlan | None:
    """Return a plan, or None if it would pad or interpolate in another way."""
    kind = getattr(resample, "value", resample)
    interpolation = INTERPOLATIONS.get(kind, kind)
    sides = (size, size) if isinstance(size, int) else size
    is_cut = crop is None or (crop[0] <= sides[0] and crop[1] <= sides[1])
    needs_crop = isinstance(size, int) and crop is None
    if interpolation not in INTERPOLATIONS.values() or not is_cut or needs_crop:
        return None
    if len(mean) != CHANNELS or len(std) != CHANNELS:
        return None
    moments = tuple(map(float, mean)), tuple(map(float, std))
    return PixelPlan(size, crop, rounds, str(interpolation), float(divisor), *moments)

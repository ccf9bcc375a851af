"""Preparing images: the difference from the models' own processors, and images per second.

    python benchmarks/prepare.py [IMAGES]

Generated photos: smooth areas, edges and noise, saved as JPEG. The first table compares the model's
input of each supported processor with that of the processor itself, on the photo decoded by Pillow
at full size: the largest difference in levels of 255, and the share of values that differ. The
second gives images/s and CPU milliseconds per image of `--exact-decode` (the processor on all
pixels), of the processor with large JPEGs at reduced scale, and of capmix's default, which take
turns; medians of 5 rounds; the ratio is of CPU times. Then come joining 256 images for a GPU (as
float32 and converted to bfloat16, which happens before the copy; and as uint8), and decoding all
pixels and at reduced scale, for large JPEGs and an input side of 224 pixels.
"""

import io
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from transformers import (
    BlipImageProcessor,
    BlipImageProcessorPil,
    CLIPImageProcessor,
    CLIPImageProcessorPil,
    SiglipImageProcessor,
    ViTImageProcessor,
)

from capmix.cli.malloc import keep_freed_memory
from capmix.engine.prefetch import prefetched
from capmix.models.device import alone_on_its_core
from capmix.models.images import decode_image, plain_jpeg_size, spare_scale
from capmix.models.pixels import PixelPlan, _decode_jpeg, processor_plan, transform_plan

ROUNDS = 5
SIDES = [(512, 384), (640, 480), (333, 517), (200, 150), (1000, 37), (90, 1), (1600, 1200)]
LARGE = [(1024, 768), (1440, 1080), (1920, 1440), (2560, 1920), (4000, 3008)]
Own = Callable[[Image.Image], Any]


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 64
    keep_freed_memory()
    families = _families()
    photos = [(size, _photo(size, seed)) for seed, size in enumerate(SIDES)]
    print(f"{'processor':<36}{'largest difference':>20}{'values that differ':>20}")
    for name, (plan, own, _) in families.items():
        _print_difference(name, plan, own, [data for size, data in photos if min(size) > 1])
    print()
    for size in SIDES[:2]:
        data = [_photo(size, seed) for seed in range(count)]
        kilobytes = sum(map(len, data)) / count / 1000
        print(f"{count} JPEGs of {size[0]} x {size[1]} pixels, {kilobytes:.0f} kB each")
        for name in ("open_clip 224", "BLIP 384", "BLIP-2 224"):
            for threads in (1, 2):
                _print_speed(name, *families[name], data, threads)
    print()
    _print_collating()
    print()
    _print_large()


def _families() -> dict[str, tuple[PixelPlan, Own, int]]:
    """Return by name: the plan, the own processing of a decoded image, and the input side."""
    clip = PreprocessCfg(size=224)
    squash = PreprocessCfg(size=384, resize_mode="squash", interpolation="bilinear")
    square = {"height": 224, "width": 224}
    found: dict[str, tuple[PixelPlan, Own, int]] = {}
    for name, about in (("open_clip 224", clip), ("open_clip squash, bilinear 384", squash)):
        transform = image_transform_v2(about, is_train=False)
        plan = transform_plan(transform)
        assert plan is not None
        found[name] = plan, transform, max(plan.shape)
    for name, images in {
        "BLIP 384": BlipImageProcessor(),
        "BLIP-2 224": BlipImageProcessor(size=square),
        "BLIP-2 224, Pillow backend": BlipImageProcessorPil(size=square),
        "CLIP, GIT 224": CLIPImageProcessor(),
        "CLIP 224, Pillow backend": CLIPImageProcessorPil(),
        "LLaVA 336": CLIPImageProcessor(
            size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336}
        ),
        "Florence-2 768": CLIPImageProcessor(
            size={"height": 768, "width": 768}, do_center_crop=False
        ),
        "SigLIP, PaliGemma 224": SiglipImageProcessor(),
        "ViT, bilinear 224": ViTImageProcessor(),
    }.items():
        own = _own(images)
        planned = processor_plan(images, lambda image, own=own: {"pixel_values": own(image)[None]})
        assert planned is not None, name
        found[name] = planned[0], own, max(planned[0].shape)
    return found


def _own(images: Any) -> Own:
    return lambda image: images(images=image, return_tensors="pt")["pixel_values"][0]


def _photo(size: tuple[int, int], seed: int) -> bytes:
    random = np.random.default_rng(seed)
    width, height = size
    grid = random.integers(0, 256, (max(2, height // 40), max(2, width // 40), 3), np.uint8)
    smooth = np.asarray(Image.fromarray(grid).resize(size, Image.Resampling.BICUBIC), np.float32)
    smooth = smooth + random.normal(0, 6, smooth.shape)
    smooth[height // 3 : height // 2, width // 4 : width // 2] *= 0.5  # an object with edges
    out = io.BytesIO()
    Image.fromarray(smooth.clip(0, 255).astype(np.uint8)).save(out, "JPEG", quality=85)
    return out.getvalue()


def _print_difference(name: str, plan: PixelPlan, own: Own, photos: list[bytes]) -> None:
    differences = []
    for data in photos:
        exact = own(decode_image(data))
        fast = plan.normalize(torch.from_numpy(plan.prepare(data))[None], torch.float32)[0]
        levels = (fast - exact).abs() * torch.tensor(plan.std)[:, None, None] * plan.divisor
        differences.append(levels.flatten())
    levels = torch.cat(differences)
    share = (levels > 0.5).float().mean()
    print(f"{name:<36}{float(levels.max()):>20.2f}{float(share):>20.2%}", flush=True)


def _print_speed(
    name: str, plan: PixelPlan, own: Own, side: int, photos: list[bytes], threads: int
) -> None:
    ways: dict[str, tuple[Callable[[bytes], Any], Callable[[], None]]] = {
        "exact": (lambda data: own(decode_image(data)).numpy(), lambda: None),
        "reduced": (lambda data: own(decode_image(data, input_side=side)).numpy(), lambda: None),
        "fast": (plan.prepare, alone_on_its_core()),
    }
    wall: dict[str, list[float]] = {way: [] for way in ways}
    used: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(ROUNDS):
        for way, (work, start) in ways.items():
            began, cpu = time.perf_counter(), time.process_time()
            for _, finished in prefetched(photos, work, threads, 96, start):
                finished.result()
            wall[way].append((time.perf_counter() - began) / len(photos))
            used[way].append((time.process_time() - cpu) / len(photos))
    base = statistics.median(used["reduced"])
    for way in ways:
        seconds, cpu = statistics.median(wall[way]), statistics.median(used[way])
        print(
            f"  {name:<14} {threads} threads  {way:<8}{1 / seconds:>7.0f} images/s"
            f"{1000 * cpu:>7.2f} ms CPU{base / cpu:>7.2f} x",
            flush=True,
        )


def _print_collating() -> None:
    pixels = [np.full((3, 224, 224), seed % 256, np.uint8) for seed in range(256)]
    values = [one.astype(np.float32) for one in pixels]
    ways = {
        "float32, to bfloat16": lambda: torch.from_numpy(np.stack(values)).to(torch.bfloat16),
        "uint8": lambda: torch.from_numpy(np.stack(pixels)),
    }
    times = {name: [_cpu(way) for _ in range(ROUNDS)] for name, way in ways.items()}
    for name, seconds in times.items():
        each = 1000 * statistics.median(seconds) / len(pixels)
        print(f"joining 256 images, {name:<22}{each:>6.2f} ms CPU per image", flush=True)


def _print_large() -> None:
    plan, _, side = _families()["open_clip 224"]
    print(f"{'JPEG':<14}{'all pixels':>12}{'reduced':>12}{'mean levels':>13}{'largest':>9}")
    for size in LARGE:
        data = _photo(size, 0)
        assert plain_jpeg_size(data) == size

        def full(data: bytes = data) -> np.ndarray:
            return plan._fit(_decode_jpeg(data))

        def reduced(data: bytes = data) -> np.ndarray:
            return plan.convert(decode_image(data, input_side=side))

        apart = np.abs(full().astype(int) - reduced().astype(int))
        times = [[_cpu(way) for _ in range(ROUNDS)] for way in (full, reduced)]
        one, other = (1000 * statistics.median(some) for some in times)
        scale = f"1/{spare_scale(size, side)}"
        print(
            f"{size[0]} x {size[1]:<7}{one:>9.1f} ms{other:>9.1f} ms{apart.mean():>8.2f} at {scale}"
            f"{apart.max():>7}",
            flush=True,
        )


def _cpu(run: Callable[[], object]) -> float:
    started = time.process_time()
    run()
    return time.process_time() - started


if __name__ == "__main__":
    main()

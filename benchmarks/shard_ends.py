"""How much of the time a simulated GPU waits, with small shards. Run from the root of a checkout.

The model sleeps `1 / rate` seconds an image; the images are real JPEGs (512 x 384, about 40 kB).
`--host real` decodes and resizes them on this machine's cores. `--host fast` also sleeps there, in
16 threads that together are 1.5 times as fast as the model, as on a host with many cores.
Prints one line per run: seconds, CPU seconds, and the percentage of the seconds in which the model
was busy.
"""

import argparse
import io
import tarfile
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from capmix.caption.captioner import Caption
from capmix.caption.image_stage import image_caption_stage
from capmix.models.images import decode_image
from capmix.pool import Sample
from capmix.workspace import open_workspace

SIDE = 224
FIXED = 0.004  # seconds per batch, as for launching kernels
FASTER = 1.5  # a fast host, compared with the model


class SimulatedGpu:
    """Captions `rate` images per second; see the module docstring for `host`."""

    def __init__(self, rate: float, batch_size: int, host: str):
        self.settings: dict[str, Any] = {"model": "simulated"}
        self.batch_size, self.workers = batch_size, 16 if host == "fast" else 2
        self.rate, self.host = rate, host
        self.busy = 0.0

    def prepare(self, sample: Sample) -> np.ndarray | None:
        if self.host == "fast":
            time.sleep(self.workers / (FASTER * self.rate))
            return None
        image = decode_image(sample.image, input_side=SIDE)
        return np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BICUBIC))

    def caption(
        self, prepared: Sequence[Any], uids: Sequence[str], source: str
    ) -> list[list[Caption]]:
        started = time.monotonic()
        time.sleep(FIXED + len(uids) / self.rate)
        self.busy += time.monotonic() - started
        return [[Caption(f"an image with the uid {uid}")] for uid in uids]


def write_pool(folder: Path, shards: int, samples: int) -> None:
    """Write tars that repeat 64 distinct images."""
    folder.mkdir()
    draw = np.random.default_rng(0)
    images = []
    for _ in range(64):
        small = draw.integers(0, 256, (48, 64, 3), np.uint8)
        image = Image.fromarray(small).resize((512, 384), Image.Resampling.BICUBIC)
        grain = Image.effect_noise((512, 384), 24).convert("RGB")
        image = Image.blend(image, grain, 0.12).filter(ImageFilter.GaussianBlur(0.6))
        stream = io.BytesIO()
        image.save(stream, "JPEG", quality=88)
        images.append(stream.getvalue())
    for shard in range(shards):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as tar:
            for number in range(samples):
                key = f"{shard:05d}{number:04d}"
                for name, data in (("jpg", images[number % 64]), ("txt", key.encode())):
                    member = tarfile.TarInfo(f"{key}.{name}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=float, default=2000.0)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--samples", type=int, nargs="+", default=[200, 500, 1000])
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--host", choices=("real", "fast"), default="fast")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        for samples in (64, *asked.samples):  # the first one imports what is needed
            folder = Path(scratch) / str(samples)
            shards = max(1, asked.images // samples) if samples != 64 else 1
            write_pool(folder, shards, samples)
            model = SimulatedGpu(asked.rate, asked.batch_size, asked.host)
            started, cpu = time.monotonic(), time.process_time()
            caption(folder, model)
            seconds, cpu = time.monotonic() - started, time.process_time() - cpu
            print(
                f"{asked.host} {asked.rate:g}/s {shards} shards of {samples}: {seconds:.2f} s, "
                f"{cpu:.2f} CPU s, busy {model.busy / seconds:.1%}",
                flush=True,
            )


def caption(pool: Path, model: SimulatedGpu) -> None:
    work = open_workspace(str(pool), f"{pool}-work")
    work.run(lambda: [image_caption_stage(work.pool, model, "s", store=work.store)])


if __name__ == "__main__":
    main()

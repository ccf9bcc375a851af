"""Images per second of captioning with BLIP-base (true architecture, random weights).

    python benchmarks/caption.py [IMAGES]

Takes turns in one process, round after round, on the same JPEGs of web size: the plain loop that
most people write (decode, processor, `generate` with the paper's sampling, in batches); the same
with one image at a time, as the paper authors' tool and many scripts do; and capmix's stage, tar
to part. Model loading is left out. Medians and ratios are printed. Random weights never end a
caption: all have 40 tokens.
"""

import io
import statistics
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import (
    BertTokenizerFast,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessor,
    BlipProcessor,
)

from capmix import jobs
from capmix.caption.image_stage import Busy, image_caption_stage
from capmix.caption.settings import CaptionSettings
from capmix.caption.transformers import TransformersCaptioner
from capmix.engine.local import run_stage

ROUNDS = 3
BATCH = 16
PAPER = {"do_sample": True, "top_k": 50, "temperature": 0.75}
LENGTHS = {"min_new_tokens": 40, "max_new_tokens": 40}


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 16
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        images = write_pool(folder / "pool", count)
        _write_model(folder / "model")
        processor = BlipProcessor.from_pretrained(folder / "model")
        model = BlipForConditionalGeneration.from_pretrained(folder / "model").eval()
        settings = CaptionSettings(
            model=str(folder / "model"), min_tokens=40, max_tokens=40, batch_size=BATCH
        )
        captioner = TransformersCaptioner(settings)
        ways: dict[str, Callable[[], None]] = {
            f"plain loop, batch {BATCH}": lambda: _plain(model, processor, images, BATCH),
            "plain loop, one at a time": lambda: _plain(model, processor, images, 1),
            "capmix": lambda: _capmix(folder, captioner),
        }
        rates: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(ROUNDS):
            for name, run in ways.items():
                started = time.perf_counter()
                run()
                rates[name].append(count / (time.perf_counter() - started))
    base = statistics.median(next(iter(rates.values())))
    for name, found in rates.items():
        rate = statistics.median(found)
        print(f"{name:<26} {rate:6.2f} images/s  {rate / base:5.2f} x the first")


@torch.inference_mode()
def _plain(
    model: torch.nn.Module, processor: BlipProcessor, images: list[bytes], size: int
) -> None:
    for start in range(0, len(images), size):
        batch = [Image.open(io.BytesIO(d)).convert("RGB") for d in images[start : start + size]]
        inputs = processor(images=batch, return_tensors="pt")
        tokens = model.generate(**inputs, **PAPER, **LENGTHS)
        processor.batch_decode(tokens, skip_special_tokens=True)


def _capmix(folder: Path, captioner: TransformersCaptioner) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        work = jobs.open_work(str(folder / "pool"), scratch)
        stage = image_caption_stage(work.pool, captioner, "blip", Busy())
        run_stage(stage, work.pool.shards, work.store)


def write_pool(folder: Path, count: int) -> list[bytes]:
    """A tar of `count` smooth JPEGs of 640 x 480 with short texts; returns the images."""
    folder.mkdir()
    draw = np.random.default_rng(0)
    images = []
    with tarfile.open(folder / "00000.tar", "w") as archive:
        for i in range(count):
            grid = draw.integers(0, 255, (12, 16, 3), np.uint8)
            out = io.BytesIO()
            Image.fromarray(grid).resize((640, 480), Image.Resampling.BICUBIC).save(out, "JPEG")
            images.append(out.getvalue())
            for suffix, data in ("jpg", images[-1]), ("txt", f"old house by the sea {i}".encode()):
                member = tarfile.TarInfo(f"{i:09d}.{suffix}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    return images


def _write_model(folder: Path) -> None:
    folder.mkdir()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]"]
    words = [*special, *(f"w{i}" for i in range(30524 - len(special)))]
    (folder / "vocab.txt").write_text("\n".join(words))
    size = {"height": 384, "width": 384}
    processor = BlipProcessor(
        BlipImageProcessor(size=size), BertTokenizerFast(str(folder / "vocab.txt"))
    )
    processor.save_pretrained(folder)
    torch.manual_seed(0)
    config = BlipConfig()
    config.vision_config.image_size = 384
    BlipForConditionalGeneration(config).save_pretrained(folder)


if __name__ == "__main__":
    main()

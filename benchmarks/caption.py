"""Images per second of captioning with BLIP-base (original architecture, random weights) on a CPU.

    python benchmarks/caption.py [IMAGES [TOKENS]]

All ways caption the same 640 x 480 JPEGs; the time to load the model is excluded:

- a plain loop: decode, processor, `generate` with the paper's sampling;
- the same loop with a DataLoader, as in the paper authors' dataset2metadata;
- data-juicer's image_captioning_mapper, if installed, with its own batch size; its limit of 128
  tokens is lowered to that of the others, which is to its advantage;
- one image at a time, as in many scripts;
- capmix's stage, from tar to part: as it is by default, in bfloat16, and with the vision tower in
  OpenVINO in both precisions.

A model with random weights never ends a caption, so every caption has TOKENS tokens (default: 40,
the paper's maximum). Ratios are relative to the plain loop with batch size 32.
"""

import io
import sys
import tarfile
import tempfile
from collections.abc import Callable
from functools import partial
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
from turns import Way, compare

PAPER = {"do_sample": True, "top_k": 50, "temperature": 0.75}
BASE = "plain loop, batch 32"


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 32
    tokens = int(sys.argv[2]) if len(sys.argv) > 2 else 40
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        images = write_pool(folder / "pool", count)
        _write_model(folder / "model")
        ways = {
            BASE: Way(_plain, (folder, images, 32, tokens), count),
            "plain loop, batch 16": Way(_plain, (folder, images, 16, tokens), count),
            "DataLoader loop, batch 16": Way(_loader, (folder, images, 16, tokens), count),
            "data-juicer": Way(_data_juicer, (folder, images, tokens), count),
            "plain loop, one at a time": Way(_plain, (folder, images[:8], 1, tokens), 8),
            "capmix": Way(_capmix, (folder, tokens), count),
            "capmix, bfloat16": Way(_capmix, (folder, tokens, "torch", "bfloat16"), count),
            "capmix, OpenVINO": Way(_capmix, (folder, tokens, "openvino"), count),
            "capmix, OpenVINO, bfloat16": Way(
                _capmix, (folder, tokens, "openvino", "bfloat16"), count
            ),
        }
        compare(ways, BASE)


def _plain(folder: Path, images: list[bytes], size: int, tokens: int) -> Callable[[], None]:
    processor, generate = _load(folder, tokens)

    def run() -> None:
        for start in range(0, len(images), size):
            batch = [_decode(data) for data in images[start : start + size]]
            inputs = processor(images=batch, return_tensors="pt")
            processor.batch_decode(generate(**inputs), skip_special_tokens=True)

    return run


def _loader(folder: Path, images: list[bytes], size: int, tokens: int) -> Callable[[], None]:
    processor, generate = _load(folder, tokens)
    dataset = [(processor, data) for data in images]

    def run() -> None:
        loader = torch.utils.data.DataLoader(dataset, size, num_workers=1, collate_fn=_collate)
        for pixels in loader:
            tokens_of = generate(pixel_values=pixels)
            processor.batch_decode(tokens_of, skip_special_tokens=True)

    return run


def _collate(batch: list[tuple[BlipProcessor, bytes]]) -> torch.Tensor:
    torch.set_num_threads(1)
    pixels = [p(images=_decode(d), return_tensors="pt")["pixel_values"] for p, d in batch]
    return torch.cat(pixels)


def _data_juicer(folder: Path, images: list[bytes], tokens: int) -> Callable[[], None]:
    from data_juicer.ops.mapper.image_captioning_mapper import ImageCaptioningMapper
    from data_juicer.utils.mm_utils import SpecialTokens
    from data_juicer.utils.model_utils import get_model

    paths = [folder / f"{i}.jpg" for i in range(len(images))]
    for path, data in zip(paths, images, strict=True):
        path.write_bytes(data)
    samples = {
        "text": [SpecialTokens.image for _ in paths],
        "images": [[str(path)] for path in paths],
    }
    operator = ImageCaptioningMapper(hf_img2seq=str(folder / "model"), keep_original_sample=False)
    model, _ = get_model(operator.model_key, None, False)
    whole = model.generate
    model.generate = lambda **given: whole(**(given | _lengths(tokens)))
    return partial(operator.process_batched, samples)


def _capmix(
    folder: Path, tokens: int, runtime: str = "torch", dtype: str = "float32"
) -> Callable[[], None]:
    from capmix.caption.backends.transformers import TransformersCaptioner
    from capmix.caption.image_stage import image_caption_stage
    from capmix.caption.settings import CaptionSettings
    from capmix.cli.malloc import keep_freed_memory
    from capmix.workspace import open_workspace

    keep_freed_memory()  # as the command line does
    settings = CaptionSettings(
        model=str(folder / "model"),
        min_tokens=tokens,
        max_tokens=tokens,
        runtime=runtime,
        dtype=dtype,
    )
    captioner = TransformersCaptioner(settings)

    def run() -> None:
        with tempfile.TemporaryDirectory() as scratch:
            work = open_workspace(str(folder / "pool"), scratch)
            work.run(lambda: [image_caption_stage(work.pool, captioner, "blip")])

    return run


def _load(folder: Path, tokens: int) -> tuple[BlipProcessor, Callable[..., torch.Tensor]]:
    processor = BlipProcessor.from_pretrained(folder / "model")
    model = BlipForConditionalGeneration.from_pretrained(folder / "model").eval()
    return processor, partial(model.generate, **PAPER, **_lengths(tokens))


def _lengths(tokens: int) -> dict[str, int]:
    return {"min_new_tokens": tokens, "max_new_tokens": tokens}


def _decode(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")


def write_pool(folder: Path, count: int) -> list[bytes]:
    """Write a tar of `count` smooth 640 x 480 JPEGs with short texts; return the images."""
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

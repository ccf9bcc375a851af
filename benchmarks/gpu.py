"""GPU benchmark: captioning with BLIP-2 OPT-2.7B and scoring with CLIP ViT-L/14.

    python benchmarks/gpu.py             # about 10 minutes on one GPU, 60 GB of GPU memory
    python benchmarks/gpu.py --small     # a minute or two on any device, to test this script

The models have their original architectures with random weights in bfloat16. Captions have 30
tokens, or lengths as a trained model draws them: a mean of 11 tokens, at most 40. Prints tables for
docs/speed.md, in images/s and mean output tokens:

- transformers' `generate` with the paper's sampling at several batch sizes, and capmix with its
  slots, with K = 4 captions and with batches of `generate`; all from prepared images in host
  memory, so that the copies to the GPU are charged to both;
- the floor: the least time possible at the measured rates of the GPU;
- capmix from tar to part, captioning, and scoring of raw texts and four captions;
- how many captions change, to the bit, with other neighbours, in another order, and when the GPU
  runs out of memory; in float32, how many greedy captions equal those of `generate`.

The floor is the multiplications of ViT-g, Q-Former and prefill, and for each token the longer of
the decoder's multiplications and of reading its weights and cache once.
"""

import io
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from gpu_models import write_blip2, write_pool
from PIL import Image
from safetensors.torch import save_file
from transformers import Blip2ForConditionalGeneration, Blip2Processor

from capmix.caption.backends.transformers import TransformersCaptioner
from capmix.caption.captioner import Caption
from capmix.caption.image_stage import image_caption_stage
from capmix.caption.settings import CaptionSettings
from capmix.caption.stream import Running, StreamedImage
from capmix.engine.batches import Batches
from capmix.engine.busy import Busy
from capmix.pool import Sample
from capmix.score.scorers import score_stages
from capmix.score.settings import ScoreSettings
from capmix.workspace import open_workspace

SMALL = "--small" in sys.argv
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPE = torch.bfloat16 if DEVICE == "cuda" else torch.float32
SIDE = 28 if SMALL else 224
FIXED, DRAWN = (30, 30), (1, 40)  # fewest and most tokens of a caption
PLAIN_BATCHES = (4,) if SMALL else (32, 64, 256, 512, 1024)
SLOTS = (4, 8) if SMALL else (256, 512, 1024)
IMAGES = 16 if SMALL else 2048
TAR_IMAGES = 32 if SMALL else 8192
SCORED_IMAGES = 32 if SMALL else 20000
PAPER = {"do_sample": True, "top_k": 50, "temperature": 0.75}


@dataclass(frozen=True)
class Card:
    """Measured rates of the GPU: operations and bytes per second."""

    operations: float
    bytes: float


def main() -> None:
    card = _measure_card()
    name = torch.cuda.get_device_name() if DEVICE == "cuda" else "CPU"
    print(f"{name}: {card.operations / 1e12:.0f} T operations/s, {card.bytes / 1e9:.0f} GB/s\n")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_blip2(folder / "blip2", SIDE, SMALL, DEVICE, DTYPE)
        _caption(folder / "blip2", card)
        write_pool(folder / "pool", TAR_IMAGES)
        _caption_tar(folder)
        _compare_bits(folder / "blip2")
        _equal_in_float32(folder / "blip2")
        write_pool(folder / "scored", SCORED_IMAGES)
        _score_tar(folder, card)


def _measure_card() -> Card:
    size = 256 if SMALL else 8192
    left = torch.randn(size, size, device=DEVICE, dtype=DTYPE)
    product = 2 * size**3 / _seconds(lambda: left @ left)
    large = torch.empty(2**22 if SMALL else 2**31, dtype=torch.uint8, device=DEVICE)
    copied = 2 * large.numel() / _seconds(lambda: large.clone())
    return Card(product, copied)


def _caption(folder: Path, card: Card) -> None:
    print("| captioning, BLIP-2 OPT-2.7B | images/s, 30 tokens | as drawn | mean tokens |")
    print("|--|--:|--:|--:|")
    pixels = torch.rand(IMAGES, 3, SIDE, SIDE)  # a plain loop copies float32
    model = Blip2ForConditionalGeneration.from_pretrained(folder, dtype=DTYPE).to(DEVICE).eval()
    _print_floor(model, card)
    for batch in PLAIN_BATCHES:
        rates = [_plain(model, pixels, batch, lengths) for lengths in (FIXED, DRAWN)]
        _print_row(f"plain `generate`, batch {batch}", rates)
    _print_row(
        f"plain `generate`, batch {PLAIN_BATCHES[-2:][0]}, K = 4",
        [
            _plain(model, pixels, PLAIN_BATCHES[-2:][0] // 4, lengths, 4)
            for lengths in (FIXED, DRAWN)
        ],
    )
    del model
    for slots in SLOTS:
        _print_row(f"capmix, {slots} slots", _by_lengths(folder, slots=slots))
    _print_row("capmix, default slots, K = 4", _by_lengths(folder, captions_per_image=4))
    _print_row("capmix, default slots, compiled", _by_lengths(folder, compile_decoder=True))
    _print_row("capmix, batches of `generate`", _by_lengths(folder, slots=0))
    print()


def _print_row(way: str, rates: Sequence[tuple[float, float]]) -> None:
    (fixed, _), (drawn, mean) = rates
    print(f"| {way} | {fixed:.1f} | {drawn:.1f} | {mean:.1f} |", flush=True)


def _print_floor(model: Blip2ForConditionalGeneration, card: Card) -> None:
    for batch in SLOTS[-2:]:
        rates = [batch / _floor_seconds(model, batch, tokens, card) for tokens in (30, 11)]
        print(f"| floor, batch {batch} | {rates[0]:.1f} | {rates[1]:.1f} | 11 |")


def _plain(
    model: Blip2ForConditionalGeneration,
    pixels: torch.Tensor,
    batch: int,
    lengths: tuple[int, int],
    captions: int = 1,
) -> tuple[float, float]:
    """Return images/s and mean tokens of `generate`, from pixels in host memory."""
    batch = max(1, batch)
    some = pixels[: max(batch, min(len(pixels), 4 * batch))]
    options = PAPER | {"min_new_tokens": lengths[0], "max_new_tokens": lengths[1]}
    ends = torch.tensor(model.language_model.generation_config.eos_token_id)
    written: list[int] = []

    def run() -> None:
        for part in some.split(batch):
            inputs = part.to(DEVICE, DTYPE)
            tokens = model.generate(
                pixel_values=inputs, num_return_sequences=captions, **options
            ).cpu()
            new = tokens[:, model.config.num_query_tokens + 1 :]
            is_end = torch.isin(new, ends)
            position = torch.where(is_end.any(1), is_end.int().argmax(1) + 1, new.shape[1])
            written.extend(position.tolist())

    with torch.inference_mode():
        rate = len(some) / _seconds(run)
    return rate, float(np.mean(written))


def _by_lengths(folder: Path, **settings: Any) -> list[tuple[float, float]]:
    return [_capmix(folder, lengths, **settings) for lengths in (FIXED, DRAWN)]


def _capmix(folder: Path, lengths: tuple[int, int], **settings: Any) -> tuple[float, float]:
    """Return images/s and mean tokens of capmix, from prepared images in host memory."""
    one = _captioner(folder, lengths, **settings)
    prepared = _prepared(one, IMAGES)
    captions: list[Caption] = []

    def run() -> None:
        captions[:] = [c for image in _streamed(one, prepared) for c in image.captions]

    rate = IMAGES / _seconds(run)
    # Words are tokens here; a caption that ended has drawn an end token, too.
    counts = [len(c.text.split()) + (c.finish == "stop") for c in captions]
    return rate, float(np.mean(counts))


def _captioner(
    folder: Path, lengths: tuple[int, int] = DRAWN, **settings: Any
) -> TransformersCaptioner:
    limits = {"min_tokens": lengths[0], "max_tokens": lengths[1]}
    if SMALL:
        limits |= {"batch_size": 4}
    return TransformersCaptioner(CaptionSettings(model=str(folder), **(limits | settings)))


def _prepared(captioner: TransformersCaptioner, count: int) -> list[dict[str, torch.Tensor]]:
    """Return inputs in the form of `prepare`, with random pixels: preparing is timed elsewhere."""
    inputs = captioner.prepare(Sample("", "", _jpeg(), "jpg", None))
    draw, shape = np.random.default_rng(0), inputs["pixel_values"].shape
    if inputs["pixel_values"].dtype == torch.uint8:
        pixels = [torch.from_numpy(draw.integers(0, 256, shape, np.uint8)) for _ in range(count)]
    else:
        pixels = [torch.randn(shape) for _ in range(count)]
    return [inputs | {"pixel_values": one} for one in pixels]


def _jpeg() -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (SIDE, SIDE)).save(out, "JPEG")
    return out.getvalue()


def _streamed(
    captioner: TransformersCaptioner, prepared: Sequence[dict[str, torch.Tensor]], step: int = 1
) -> list[StreamedImage]:
    """Caption in the order of the images, or in the reverse order if `step` is -1."""

    def images() -> Iterator[StreamedImage]:
        for number in range(len(prepared))[::step]:
            yield StreamedImage(prepared[number], str(number), about=number)

    running = Running("s", Batches(), Busy())
    found = list(chain.from_iterable(captioner.stream(images(), running)))
    return sorted(found, key=lambda image: image.about)


def _caption_tar(folder: Path) -> None:
    """Time captioning from tar to part, after a first run that compiles."""
    captioner = _captioner(folder / "blip2")
    for name in ("first", "second"):
        work = open_workspace(str(folder / "pool"), str(folder / name))
        started, cpu = time.perf_counter(), time.process_time()
        work.run(lambda work=work: [image_caption_stage(work.pool, captioner, "s")])
        seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    rate, cores = TAR_IMAGES / seconds, cpu / seconds
    print(f"captioning from tar to part: {rate:.1f} images/s, {cores:.1f} cores")


def _compare_bits(folder: Path) -> None:
    """Print how many captions differ when only their neighbours or the memory do."""
    one = _captioner(folder)
    prepared = _prepared(one, IMAGES)
    before = [image.captions for image in _streamed(one, prepared)]
    some = IMAGES // 4
    ways: dict[str, Callable[[], list[list[Caption]]]] = {
        "in reverse order": lambda: [i.captions for i in _streamed(one, prepared, -1)],
        "with other neighbours": lambda: [i.captions for i in _streamed(one, prepared[:some])],
        "without memory": lambda: _without_memory(one, prepared),
    }
    for way, run in ways.items():
        after = run()
        same = sum(a == b for a, b in zip(before, after, strict=False))
        print(f"{way}: {same} of {len(after)} captions are the same")


def _without_memory(
    one: TransformersCaptioner, prepared: Sequence[dict[str, torch.Tensor]]
) -> list[list[Caption]]:
    """Caption while little of the GPU's memory is free; on a CPU, with failing prompts."""
    slots = one._slots
    assert slots is not None
    if DEVICE == "cuda":
        free, _ = torch.cuda.mem_get_info()
        ballast = torch.empty(int(0.95 * free), dtype=torch.uint8, device=DEVICE)
        found = [image.captions for image in _streamed(one, prepared)]
        del ballast
    else:
        plain, calls = slots._model.prompt, []

        def prompt(inputs: dict[str, Any]) -> Any:
            calls.append(1)
            if len(calls) == 2:
                raise torch.OutOfMemoryError("simulated")
            return plain(inputs)

        slots._model.prompt = prompt
        found = [image.captions for image in _streamed(one, prepared)]
    print(f"without memory: {slots.sizes.slots} slots were left")
    return found


def _equal_in_float32(folder: Path) -> None:
    """Compare greedy captions of 16 images: capmix in slots, `generate` one at a time."""
    plain = Blip2ForConditionalGeneration.from_pretrained(folder).to(DEVICE).eval()
    one = _captioner(folder, dtype="float32", temperature=0, slots=8)
    prepared = _prepared(one, 16)
    ours = [image.captions[0].text for image in _streamed(one, prepared)]
    tokenizer = Blip2Processor.from_pretrained(folder).tokenizer
    ends, expected = set(plain.language_model.generation_config.eos_token_id), []
    for inputs in prepared:
        here = one._collate([inputs])
        tokens = plain.generate(**here, do_sample=False, min_new_tokens=1, max_new_tokens=DRAWN[1])
        start = here["input_ids"].shape[1] if "input_ids" in here else 1
        new = tokens[0, start:].tolist()
        end = next((i for i, token in enumerate(new) if token in ends), None)
        expected.append(tokenizer.decode(new[:end], skip_special_tokens=True).strip())
    same = sum(a == b for a, b in zip(ours, expected, strict=True))
    print(f"float32: {same} of {len(ours)} greedy captions equal those of plain `generate`")


def _score_tar(folder: Path, card: Card) -> None:
    """Time scoring from tar to part: raw texts and four captions with ViT-L/14."""
    name, operations = _write_clip(folder / "clip")
    settings = ScoreSettings(model=f"local-dir:{name}", dtype=str(DTYPE).removeprefix("torch."))
    rates = []
    for run in ("first", "second"):
        work = open_workspace(str(folder / "scored"), str(folder / f"scored-{run}"))
        work.index()
        sources = ["raw", *(_write_captions(work, folder, number) for number in range(4))]
        started, cpu = time.perf_counter(), time.process_time()
        work.run(partial(score_stages, work.pool, work.store, sources, settings))
        seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
        rates.append(SCORED_IMAGES / seconds)
    share = rates[-1] * operations / card.operations
    print(
        f"scoring from tar to part, 5 texts per image: {rates[-1]:.1f} images/s, "
        f"{cpu / seconds:.1f} cores; the image tower takes {share:.0%} of the matrix rate"
    )


def _write_captions(work: Any, folder: Path, number: int) -> str:
    """Import captions, which differ between images, as source `s<number>`."""
    uids = work.store.read_table("samples/00000.parquet", ["uid"])["uid"]
    source, path = f"s{number}", folder / f"s{number}.parquet"
    texts = [f"house {number} beside tree {one} on a sunny day" for one in range(len(uids))]
    pq.write_table(pa.table({"uid": uids, "text": texts}), path)
    work.import_captions(str(path), source=source)
    return source


def _write_clip(folder: Path) -> tuple[str, float]:
    """Write ViT-L/14 for open_clip; return its folder and the operations of an image."""
    import open_clip

    vision = {"image_size": 224, "layers": 24, "width": 1024, "patch_size": 14}
    text = {"context_length": 77, "vocab_size": 49408, "width": 768, "heads": 12, "layers": 12}
    if SMALL:
        vision |= {"layers": 2, "width": 64, "image_size": 28}
        text |= {"width": 32, "heads": 2, "layers": 2}
    config = {"embed_dim": 768, "vision_cfg": vision, "text_cfg": text}
    folder.mkdir()
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": config, "preprocess_cfg": {"size": vision["image_size"]}})
    )
    torch.manual_seed(0)
    model = open_clip.CLIP(**config)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    tokens = (int(vision["image_size"]) // 14) ** 2 + 1
    operations = 2.0 * _weights(model.visual) * tokens
    return str(folder), operations + 4.0 * vision["layers"] * tokens**2 * vision["width"]


def _floor_seconds(
    model: Blip2ForConditionalGeneration, batch: int, tokens: int, card: Card
) -> float:
    """Return the least seconds possible for one batch (see the module docstring)."""
    vision, text = model.config.vision_config, model.config.text_config
    patches = (vision.image_size // vision.patch_size) ** 2 + 1
    queries = model.config.num_query_tokens
    former = _weights(model.qformer) * queries
    former += 2 * patches * vision.hidden_size * model.config.qformer_config.hidden_size
    once = _weights(model.vision_model) * patches + former
    once += 2 * vision.num_hidden_layers * patches**2 * vision.hidden_size
    decoder = _weights(model.language_model)
    prefill = decoder * queries
    step_operations = 2 * decoder * batch
    cache = 2 * text.num_hidden_layers * text.hidden_size * 2 * (queries + tokens / 2)
    step_bytes = 2 * decoder + batch * cache
    step = max(step_operations / card.operations, step_bytes / card.bytes)
    return 2 * batch * (once + prefill) / card.operations + tokens * step


def _weights(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _seconds(work: Callable[[], object], rounds: int = 3) -> float:
    """Return the median of `rounds` runs, after one run to warm up and compile."""
    times = []
    for _ in range(rounds + 1):
        _wait()
        started = time.perf_counter()
        work()
        _wait()
        times.append(time.perf_counter() - started)
    return sorted(times[1:])[rounds // 2]


def _wait() -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()

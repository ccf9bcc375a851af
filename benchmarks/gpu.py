"""GPU benchmark: captioning with BLIP-2 OPT-2.7B and image scoring with CLIP ViT-L/14.

    python benchmarks/gpu.py             # about 9 minutes on one GPU, 30 GB of GPU memory
    python benchmarks/gpu.py --small     # a few seconds on any device, to test this script

The models have their original architectures with random weights in bfloat16. Captions have 30
tokens. Images are preprocessed beforehand, so that only the models are timed. Prints:

- BLIP-2: transformers' `generate` at several batch sizes; the bound; capmix with and without a
  compiled decoder; and in float32, how many of capmix's greedy captions equal those of `generate`.
- ViT-L/14: images/s, and the share of the operation rate of a large matrix product.

The bound is the rate of a batch that takes the least time possible at the measured rates of the
GPU: the multiplications of ViT-g, Q-Former and prefill, and for each token the longer of the
decoder's multiplications and of reading its weights and cache once.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    BlipImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    PreTrainedTokenizerFast,
)

from capmix.caption.backends.transformers import TransformersCaptioner
from capmix.caption.settings import CaptionSettings

TOKENS = 30
SMALL = "--small" in sys.argv
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPE = torch.bfloat16 if DEVICE == "cuda" else torch.float32
BATCHES = (4,) if SMALL else (32, 64, 128, 256)
SIDE = 28 if SMALL else 224


@dataclass(frozen=True)
class Card:
    """Measured rates of the GPU: operations and bytes per second."""

    operations: float
    bytes: float


def main() -> None:
    card = _measure_card()
    name = torch.cuda.get_device_name() if DEVICE == "cuda" else "CPU"
    print(f"{name}: {card.operations / 1e12:.0f} T operations/s, {card.bytes / 1e9:.0f} GB/s")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        _write_blip2(folder)
        _caption(folder, card)
        _equal_in_float32(folder)
    _score(card)


def _measure_card() -> Card:
    size = 256 if SMALL else 8192
    left = torch.randn(size, size, device=DEVICE, dtype=DTYPE)
    product = 2 * size**3 / _seconds(lambda: left @ left)
    large = torch.empty(2**22 if SMALL else 2**31, dtype=torch.uint8, device=DEVICE)
    copied = 2 * large.numel() / _seconds(lambda: large.clone())
    return Card(product, copied)


def _caption(folder: Path, card: Card) -> None:
    plain = Blip2ForConditionalGeneration.from_pretrained(folder, dtype=DTYPE).to(DEVICE).eval()
    paper = {"do_sample": True, "top_k": 50, "temperature": 0.75}
    generate = partial(plain.generate, min_new_tokens=TOKENS, max_new_tokens=TOKENS, **paper)
    best = 0.0
    for batch in BATCHES:
        pixels = torch.randn(batch, 3, SIDE, SIDE, device=DEVICE, dtype=DTYPE)
        with torch.inference_mode():
            seconds = _seconds(partial(generate, pixel_values=pixels))
        best = max(best, batch / seconds)
        print(f"plain generate, batch {batch:<4} {batch / seconds:8.1f} images/s")
    bound = BATCHES[-1] / _bound_seconds(plain, BATCHES[-1], card)
    print(f"bound, batch {BATCHES[-1]:<14} {bound:8.1f} images/s")
    del plain, generate
    for compiled in (False, True):
        one = _captioner(folder, compile_decoder=compiled)
        prepared = _prepared(one, BATCHES[-1])
        uids = [str(i) for i in range(len(prepared))]
        rate = len(uids) / _seconds(partial(one.caption, prepared, uids, "s"))
        kind = "capmix, compiled" if compiled else "capmix"
        print(
            f"{kind:<27} {rate:8.1f} images/s  {rate / best:.2f} x plain, "
            f"{rate / bound:.0%} of bound"
        )
        del one


def _equal_in_float32(folder: Path) -> None:
    """Compare greedy captions of four images: capmix in one batch, `generate` one at a time."""
    plain = Blip2ForConditionalGeneration.from_pretrained(folder).to(DEVICE).eval()
    one = _captioner(folder, dtype="float32", temperature=0, compile_decoder=True)
    prepared = _prepared(one, 4)
    ours = [c[0].text for c in one.caption(prepared, ["0", "1", "2", "3"], "s")]
    expected = []
    for inputs in prepared:
        here = {name: tensor.to(DEVICE) for name, tensor in inputs.items()}
        tokens = plain.generate(
            **here, do_sample=False, min_new_tokens=TOKENS, max_new_tokens=TOKENS
        )
        new = tokens[0, inputs["input_ids"].shape[1] :] if "input_ids" in inputs else tokens[0]
        expected.append(one.tokenizer.decode(new, skip_special_tokens=True).strip())
    same = sum(a == b for a, b in zip(ours, expected, strict=True))
    print(f"float32: {same} of {len(ours)} greedy captions equal those of plain generate")


def _captioner(folder: Path, **settings: object) -> TransformersCaptioner:
    fixed = {"min_tokens": TOKENS, "max_tokens": TOKENS, "batch_size": BATCHES[-1]}
    return TransformersCaptioner(CaptionSettings(model=str(folder), **fixed, **settings))


def _prepared(captioner: TransformersCaptioner, count: int) -> list[dict[str, torch.Tensor]]:
    """Return inputs with the processor's format and random pixels, as preprocessing is not
    timed."""
    from PIL import Image

    draw = np.random.default_rng(0)
    image = Image.fromarray(draw.integers(0, 255, (SIDE, SIDE, 3), np.uint8))
    inputs = dict(captioner.processor(images=image, return_tensors="pt"))
    return [inputs | {"pixel_values": torch.randn(1, 3, SIDE, SIDE)} for _ in range(count)]


def _bound_seconds(model: Blip2ForConditionalGeneration, batch: int, card: Card) -> float:
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
    cache = 2 * text.num_hidden_layers * text.hidden_size * 2 * (queries + TOKENS / 2)
    step_bytes = 2 * decoder + batch * cache
    step = max(step_operations / card.operations, step_bytes / card.bytes)
    return 2 * batch * (once + prefill) / card.operations + TOKENS * step


def _weights(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _score(card: Card) -> None:
    config = CLIPVisionConfig(
        hidden_size=64 if SMALL else 1024,
        intermediate_size=128 if SMALL else 4096,
        num_hidden_layers=2 if SMALL else 24,
        num_attention_heads=4 if SMALL else 16,
        patch_size=14,
        image_size=SIDE,
        projection_dim=768,
    )
    model = CLIPVisionModelWithProjection(config).to(DEVICE, DTYPE).eval()
    batch = 4 if SMALL else 512
    pixels = torch.randn(batch, 3, SIDE, SIDE, device=DEVICE, dtype=DTYPE)
    with torch.inference_mode():
        rate = batch / _seconds(lambda: model(pixel_values=pixels).image_embeds)
    tokens = (SIDE // 14) ** 2 + 1
    operations = 2 * _weights(model) * tokens
    operations += 4 * config.num_hidden_layers * tokens**2 * config.hidden_size
    share = rate * operations / card.operations
    print(f"ViT-L/14, batch {batch:<11} {rate:8.1f} images/s  {share:.0%} of the matrix rate")


def _seconds(work: Callable[[], object], rounds: int = 3) -> float:
    """Return the median of `rounds` runs, after two runs to warm up and compile."""
    times = []
    for _ in range(rounds + 2):
        _wait()
        started = time.perf_counter()
        work()
        _wait()
        times.append(time.perf_counter() - started)
    return sorted(times[2:])[rounds // 2]


def _wait() -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def _write_blip2(folder: Path) -> None:
    """Write BLIP-2 with OPT-2.7B in Salesforce's configuration, with random weights and a tokenizer
    whose words are numbers."""
    config = Blip2Config(
        vision_config={"image_size": SIDE},
        text_config={
            "model_type": "opt",
            "hidden_size": 2560,
            "ffn_dim": 10240,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "word_embed_proj_dim": 2560,
            "vocab_size": 50304,
        },
    )
    if SMALL:
        tiny = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
        tiny["num_attention_heads"] = 2
        opt = tiny | {"model_type": "opt", "ffn_dim": 64, "word_embed_proj_dim": 32}
        config = Blip2Config(
            vision_config=tiny | {"image_size": SIDE},
            qformer_config=tiny | {"encoder_hidden_size": 32},
            text_config=opt | {"vocab_size": 50304},
        )
    words = ["<s>", "<pad>", "</s>", "<unk>", "<image>", *map(str, range(50304 - 5))]
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    config.image_token_index = config.image_token_id = 4
    pictures = BlipImageProcessor(size={"height": SIDE, "width": SIDE})
    processor = Blip2Processor(pictures, tokenizer, num_query_tokens=config.num_query_tokens)
    processor.save_pretrained(folder)
    torch.manual_seed(0)
    with torch.device(DEVICE):
        model = Blip2ForConditionalGeneration(config)
    model.to(DTYPE).save_pretrained(folder)


if __name__ == "__main__":
    main()

"""Images per second of scoring raw text and four captions with ViT-B-32 (random weights).

    python benchmarks/score.py [IMAGES]

Takes turns in one process on the same JPEGs of web size and captions of 6 to 14 words: a plain
loop as clip-retrieval's inference works (one pass over image and text, then one pass for each
further text, all padded to 77 tokens), and capmix's stage, tar to part. Both with open_clip, in
float32, decoding included, model loading left out. Medians and ratios are printed.
"""

import io
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import open_clip
import torch
from caption import write_pool
from PIL import Image
from safetensors.torch import save_file

from capmix import jobs
from capmix.score.open_clip import OpenClipScorer
from capmix.score.stage import ImagePass, fresh_score_stage

ROUNDS = 3
BATCH = 32
SOURCES = ["raw", "one", "two", "three", "four"]
SENTENCE = "a red apple on the old table two dogs running in green grass near house by sea"


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 128
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        images = write_pool(folder / "pool", count)
        work = jobs.open_work(str(folder / "pool"), str(folder / "work"))
        texts = _write_captions(work, folder / "captions.csv")
        name = _write_model(folder / "model")
        model, _, preprocess = open_clip.create_model_and_transforms(name)
        tokenizer = open_clip.get_tokenizer(name)
        scorer = OpenClipScorer(name, "b32", "cpu", torch.float32)
        ways = {
            "plain loop": lambda: _plain(model.eval(), preprocess, tokenizer, images, texts),
            "capmix": lambda: _capmix(work, scorer),
        }
        rates: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(ROUNDS):
            for way, run in ways.items():
                started = time.perf_counter()
                run()
                rates[way].append(count / (time.perf_counter() - started))
    base = statistics.median(rates["plain loop"])
    for way, found in rates.items():
        rate = statistics.median(found)
        print(f"{way:<12} {rate:7.1f} images/s  {rate / base:5.2f} x plain")


@torch.inference_mode()
def _plain(model, preprocess, tokenizer, images: list[bytes], texts: list[list[str]]) -> None:
    embedded = []
    for start in range(0, len(images), BATCH):
        rows = slice(start, start + BATCH)
        pixels = [preprocess(Image.open(io.BytesIO(data)).convert("RGB")) for data in images[rows]]
        embedded.append(model.encode_image(torch.stack(pixels), normalize=True))
        model.encode_text(tokenizer(texts[0][rows]), normalize=True)
    for column in texts[1:]:
        for start in range(0, len(images), BATCH):
            words = model.encode_text(tokenizer(column[start : start + BATCH]), normalize=True)
            (embedded[start // BATCH] * words).sum(1)


def _capmix(work: jobs.Work, scorer: OpenClipScorer) -> None:
    images = ImagePass(work.pool, scorer)
    stages = [fresh_score_stage(work.store, scorer, source, images) for source in SOURCES]
    for part in work.store.parts("scores"):
        work.store.fs.rm_file(work.store.path(f"{part}.json"))
    jobs.run_stages(stages, work.pool.shards, work.store, 0.0)


def _write_captions(work: jobs.Work, file: Path) -> list[list[str]]:
    """Five texts for each image, the first of which stands for the raw one."""
    draw, words = np.random.default_rng(0), SENTENCE.split()
    work.index()
    samples = work.store.read_table("samples/00000.parquet")
    uids, raw = samples.column("uid").to_pylist(), samples.column("text").to_pylist()
    columns = [raw]
    for source in SOURCES[1:]:
        texts = [" ".join(draw.choice(words, draw.integers(8, 15))) for _ in uids]
        rows = "\n".join(f"{uid},{text}" for uid, text in zip(uids, texts, strict=True))
        file.write_text(f"uid,text\n{rows}\n")
        jobs.import_captions(work, [str(file)], source, "uid", "text")
        columns.append(texts)
    return columns


def _write_model(folder: Path) -> str:
    folder.mkdir()
    torch.manual_seed(0)
    model = open_clip.create_model("ViT-B-32")
    about = {"model_cfg": open_clip.get_model_config("ViT-B-32"), "preprocess_cfg": {"size": 224}}
    (folder / "open_clip_config.json").write_text(json.dumps(about))
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return f"local-dir:{folder}"


if __name__ == "__main__":
    main()

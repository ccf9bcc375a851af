"""Images per second of scoring raw text and four captions with ViT-B-32 (random weights) on a CPU.

    python benchmarks/score.py [IMAGES]

All ways score the same 640 x 480 JPEGs and captions of 6 to 14 words in float32; the time to load
the model is excluded:

- clip-retrieval's inference, if installed: its reader, mapper and writer run once over images and
  raw texts, then once over the texts of each other source (without its logger, which waits ten
  seconds at the end of each run);
- a plain open_clip loop with the same passes, every text padded to 77 tokens;
- data-juicer's image_text_similarity_filter, if installed, once per source;
- capmix's stage, from tar to part, all sources in one pass.
"""

import io
import json
import sys
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import open_clip
import torch
from caption import write_pool
from PIL import Image
from safetensors.torch import save_file
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizerFast
from turns import Way, compare

BATCH = 32
SOURCES = ["raw", "one", "two", "three", "four"]
SENTENCE = "a red apple on the old table two dogs running in green grass near house by sea"
BASE = "plain loop"
Run = Callable[[], object]


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 128
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        images = write_pool(folder / "pool", count)
        texts = _write_captions(folder)
        name = _write_model(folder / "model")
        ways = {
            BASE: Way(_plain, (name, images, texts), count),
            "clip-retrieval": Way(_clip_retrieval, (folder, name, texts), count),
            "data-juicer": Way(_data_juicer, (folder, images, texts), count),
            "capmix": Way(_capmix, (folder, name), count),
        }
        compare(ways, BASE)


def _plain(name: str, images: list[bytes], texts: list[list[str]]) -> Run:
    model, _, preprocess = open_clip.create_model_and_transforms(name)
    tokenizer = open_clip.get_tokenizer(name)
    model.eval()

    @torch.inference_mode()
    def run() -> None:
        embedded = []
        for start in range(0, len(images), BATCH):
            rows = slice(start, start + BATCH)
            pixels = [preprocess(Image.open(io.BytesIO(d)).convert("RGB")) for d in images[rows]]
            embedded.append(model.encode_image(torch.stack(pixels), normalize=True))
            model.encode_text(tokenizer(texts[0][rows]), normalize=True)
        for column in texts[1:]:
            for start in range(0, len(images), BATCH):
                words = model.encode_text(tokenizer(column[start : start + BATCH]), normalize=True)
                (embedded[start // BATCH] * words).sum(1)

    return run


def _clip_retrieval(folder: Path, name: str, texts: list[list[str]]) -> Run:
    from clip_retrieval.clip_inference import mapper as mapping
    from clip_retrieval.clip_inference.reader import WebdatasetReader
    from clip_retrieval.clip_inference.runner import Runner
    from clip_retrieval.clip_inference.writer import NumpyWriter

    model, _, preprocess = open_clip.create_model_and_transforms(name)
    tokenizer = open_clip.get_tokenizer(name)
    mapping.load_clip = lambda **_: (model.eval(), preprocess, tokenizer)
    for source, column in zip(SOURCES[1:], texts[1:], strict=True):
        _write_texts(folder / f"{source}.tar", column)

    def run_once(tar: Path, with_images: bool) -> None:
        kinds: dict[str, Any] = {
            "enable_image": with_images,
            "enable_text": True,
            "enable_metadata": False,
        }

        def reader(sampler: Any) -> Any:
            tars = [str(tar)]
            return WebdatasetReader(sampler, preprocess, tokenizer, tars, BATCH, 2, **kinds)

        def mapper() -> Any:
            return mapping.ClipMapper(
                **kinds, use_mclip=False, clip_model="", use_jit=False, mclip_model=""
            )

        with tempfile.TemporaryDirectory() as out:
            Runner(
                reader,
                mapper,
                lambda i: NumpyWriter(i, out, **kinds, output_partition_count=1),
                lambda _: Mock(),
                1,
            )(0)

    def run() -> None:
        run_once(folder / "pool/00000.tar", True)
        for source in SOURCES[1:]:
            run_once(folder / f"{source}.tar", False)

    return run


def _data_juicer(folder: Path, images: list[bytes], texts: list[list[str]]) -> Run:
    from data_juicer.ops.filter.image_text_similarity_filter import ImageTextSimilarityFilter
    from data_juicer.utils.constant import Fields
    from data_juicer.utils.mm_utils import SpecialTokens

    paths = [folder / f"{i}.jpg" for i in range(len(images))]
    for path, data in zip(paths, images, strict=True):
        path.write_bytes(data)
    _write_transformers_model(folder / "clip")
    operator = ImageTextSimilarityFilter(hf_clip=str(folder / "clip"))

    def run() -> None:
        for column in texts:
            for path, text in zip(paths, column, strict=True):
                sample = {"text": SpecialTokens.image + text, "images": [str(path)]}
                operator.compute_stats_single(sample | {Fields.stats: {}})

    return run


def _capmix(folder: Path, name: str) -> Run:
    from capmix.cli.malloc import keep_freed_memory
    from capmix.score.backends.open_clip import OpenClipScorer
    from capmix.score.settings import ScoreSettings
    from capmix.score.stage import ImagePass, fresh_score_stage
    from capmix.workspace import open_workspace

    keep_freed_memory()  # as the command line does
    work = open_workspace(str(folder / "pool"), str(folder / "work"))
    scorer = OpenClipScorer(ScoreSettings(model=name, device="cpu", dtype="float32"))

    def run() -> None:
        images = ImagePass(work.pool, scorer)
        for part in work.store.parts("scores"):
            work.store.fs.rm_file(work.store.path(f".markers/{part}.json"))
        work.run(lambda: [fresh_score_stage(work.store, scorer, s, images) for s in SOURCES])

    return run


def _write_captions(folder: Path) -> list[list[str]]:
    """Write five texts per image; the first one serves as the raw text."""
    from capmix.workspace import open_workspace

    work = open_workspace(str(folder / "pool"), str(folder / "work"))
    draw, words = np.random.default_rng(0), SENTENCE.split()
    work.index()
    samples = work.store.read_table("samples/00000.parquet")
    uids, raw = samples.column("uid").to_pylist(), samples.column("text").to_pylist()
    columns = [raw]
    for source in SOURCES[1:]:
        texts = [" ".join(draw.choice(words, draw.integers(8, 15))) for _ in uids]
        rows = "\n".join(f"{uid},{text}" for uid, text in zip(uids, texts, strict=True))
        (folder / "captions.csv").write_text(f"uid,text\n{rows}\n")
        work.import_captions(
            [str(folder / "captions.csv")], source=source, uid_column="uid", text_column="text"
        )
        columns.append(texts)
    return columns


def _write_texts(tar: Path, texts: list[str]) -> None:
    with tarfile.open(tar, "w") as archive:
        for i, text in enumerate(texts):
            member = tarfile.TarInfo(f"{i:09d}.txt")
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode()))


def _write_model(folder: Path) -> str:
    folder.mkdir()
    torch.manual_seed(0)
    model = open_clip.create_model("ViT-B-32")
    about = {"model_cfg": open_clip.get_model_config("ViT-B-32"), "preprocess_cfg": {"size": 224}}
    (folder / "open_clip_config.json").write_text(json.dumps(about))
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return f"local-dir:{folder}"


def _write_transformers_model(folder: Path) -> None:
    """Write ViT-B-32 in transformers' format, with CLIP's vocabulary from open_clip."""
    folder.mkdir()
    known = open_clip.tokenizer.SimpleTokenizer()
    named = {known.sot_token_id: "<|startoftext|>", known.eot_token_id: "<|endoftext|>"}
    vocabulary = {named.get(i, word): i for word, i in known.encoder.items()}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    merges = "\n".join(" ".join(pair) for pair in known.bpe_ranks)
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}\n")
    tokenizer = CLIPTokenizerFast(str(folder / "vocab.json"), str(folder / "merges.txt"))
    tokenizer.model_max_length = 77
    CLIPProcessor(CLIPImageProcessor(), tokenizer).save_pretrained(folder)
    torch.manual_seed(0)
    CLIPModel(CLIPConfig()).save_pretrained(folder)


if __name__ == "__main__":
    main()

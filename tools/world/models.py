"""The learned models of the world: a tokenizer, a CLIP scorer, CoCa captioners, small CLIPs.

None of the scorer and the captioners sees an image of a pool or of a test. Each is a run of
`capmix train`, so it resumes.
"""

import gzip
import json
import math
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

import capmix
from capmix.storage.store import Store
from world.data import COCO, SCORER, SHARD, WEB, write_pairs, write_web
from world.scenes import SIDE, draw_scene
from world.texts import NOISES, description, raw_text

MERGES = 900
CONTEXT = 24  # tokens
QUICK_SAMPLES = 350_000  # seen by the captioner of `--quick`
TUNING = 4  # fine-tuning sees a quarter of the samples
TEXTS = 20_000  # true texts, and as many raw ones, for the merges
SCHEDULE: dict[str, Any] = {
    "scale": "tiny",
    "resample": True,
    "batch_size": 256,
    "learning_rate": 2e-3,
    "warmup": 40,
    "checkpoints": 1,
    "workers": 1,
    "precision": "amp_bf16",
    "yes": True,
}
# By captions' source: trained on clean generic texts, as COCO's; on raw texts of the web; and on
# raw texts, then on clean ones.
CAPTIONERS = ("coca", "web", "tuned")


@dataclass(frozen=True)
class World:
    """The folder of a world, samples seen by its models, and shards of clean pairs for each."""

    folder: Path
    scorer_samples: int = 250_000
    captioner_samples: int = 500_000
    clean_shards: int = 100

    @property
    def clip(self) -> Path:
        """The model of the scorer and of all compared CLIPs."""
        return self.folder / "models/world_clip.json"

    @property
    def sigmoid(self) -> Path:
        """The same model for SigLIP's loss. (open_clip gives `siglip` names another tokenizer.)"""
        return self.folder / "models/world_sigmoid.json"

    @property
    def coca(self) -> Path:
        """The model of the captioners."""
        return self.folder / "models/world_coca.json"

    def run(self, name: str) -> Path:
        """Return the run of the scorer or of a captioner."""
        return self.folder / "runs" / name


def write_models(world: World) -> None:
    """Write the merges and the model configs."""
    folder = world.folder / "models"
    folder.mkdir(parents=True, exist_ok=True)
    merges = folder / "merges.txt.gz"
    if not merges.exists():
        _write_merges(merges)
    size = vocabulary_size(merges)
    text = {
        "context_length": CONTEXT,
        "vocab_size": size,
        "width": 128,
        "heads": 4,
        "layers": 1,
        "tokenizer_kwargs": {"bpe_path": str(merges)},
    }
    resnet = {"timm_model_name": "test_resnet", "timm_model_pretrained": False}
    vision = {**resnet, "timm_pool": "", "timm_proj": "linear", "image_size": SIDE}
    store = Store(str(folder))
    clip = {"embed_dim": 128, "vision_cfg": vision, "text_cfg": text}
    store.write_json(world.clip.name, clip)
    # SigLIP's first scale and bias (Zhai et al. 2023, section 3.2).
    first = {"init_logit_scale": math.log(10), "init_logit_bias": -10}
    store.write_json(world.sigmoid.name, clip | first)
    vit = {"image_size": SIDE, "layers": 3, "width": 128, "head_width": 32, "patch_size": 8}
    coca = {
        "embed_dim": 128,
        "vision_cfg": {**vit, "output_tokens": True},
        "text_cfg": {**text, "embed_cls": True, "output_tokens": True},
        "multimodal_cfg": {
            "context_length": CONTEXT,
            "vocab_size": size,
            "width": 128,
            "heads": 4,
            "layers": 1,
            "attn_pooler_heads": 4,
            "n_queries": 16,
        },
        "custom_text": True,
    }
    store.write_json(world.coca.name, coca)


def train_models(world: World, captioners: Sequence[str] = CAPTIONERS[:1]) -> None:
    """Train the scorer and some of CAPTIONERS, two at a time."""
    for name in {*captioners} | ({"web"} if "tuned" in captioners else set()):
        write_clean(world, name)  # before the jobs: two captioners share their pairs
    with ProcessPoolExecutor(2) as processes:
        # `tuned` starts from `web`: both are one job, and the longest, so it is the first.
        names = [name for name in captioners if not (name == "web" and "tuned" in captioners)]
        names.sort(key=("tuned", "web", "coca").index)
        jobs = [processes.submit(train_captioner, world, name) for name in names]
        jobs.append(processes.submit(train_scorer, world))
        for job in jobs:
            job.result()


def train_scorer(world: World) -> None:
    """Train the CLIP that scores, on clean pairs with specific and generic names."""
    data = world.folder / "clean/scorer"
    write_pairs(data, SCORER, SHARD * world.clean_shards, ("specific", "specific", "generic"))
    _train(world, "scorer", data, world.clip, world.scorer_samples, seed=100)


def train_captioner(world: World, name: str) -> None:
    """Train one of CAPTIONERS, and the one that it starts from, on pairs of `write_clean`."""
    options: dict[str, Any] = {"seed": 101 + CAPTIONERS.index(name)}
    samples = world.captioner_samples
    if name == "tuned":
        train_captioner(world, "web")
        start = capmix.Run(world.run("web")).checkpoint
        options["open_clip"] = ["--pretrained", str(start)]
        samples //= TUNING
    _train(world, name, clean_folder(world, name), world.coca, samples, **options)


def write_clean(world: World, name: str) -> None:
    """Write the pairs that one of CAPTIONERS is trained on."""
    folder, count = clean_folder(world, name), SHARD * world.clean_shards
    if name == "web":
        write_web(folder, count)
    else:
        write_pairs(folder, COCO, count, ("generic",))


def clean_folder(world: World, name: str) -> Path:
    """Return the folder of the pairs that one of CAPTIONERS is trained on."""
    return world.folder / f"clean/{'web' if name == 'web' else 'coco'}"


def _train(world: World, name: str, data: Path, model: Path, samples: int, **options: Any) -> None:
    options = SCHEDULE | {"model": str(model), "samples": samples} | options
    capmix.train(data, world.run(name), **options)


def vocabulary_size(merges: Path) -> int:
    """Return the number of tokens of open_clip's tokenizer with these merges."""
    lines = gzip.decompress(merges.read_bytes()).decode().split("\n")
    return 512 + len(lines) - 1 + 2


def _write_merges(path: Path) -> None:
    """Learn byte-pair merges from true and raw texts, in the form of open_clip's tokenizer."""
    texts = []
    for i in range(TEXTS):
        seed = (WEB, i)
        scene = draw_scene(seed)
        texts.append(description(scene, np.random.default_rng((*seed, 4))))
        texts.append(description(scene, np.random.default_rng((*seed, 4)), "generic"))
        texts.append(raw_text(scene, seed, NOISES["usual"])[1])
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.Digits(individual_digits=True)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=MERGES + 100, end_of_word_suffix="</w>", show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    merges = json.loads(tokenizer.to_str())["model"]["merges"][:MERGES]
    lines = ["#version: 0.2", *(" ".join(one) for one in merges)]
    part = path.with_suffix(".part")
    part.write_bytes(gzip.compress("\n".join(lines).encode(), mtime=0))
    part.replace(path)

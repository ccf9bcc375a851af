"""Train a small CLIP on exported shards: the `tiny` scale, seconds on a CPU.

Both towers are frozen (EfficientNet-Lite0 and the static text table) and a linear projection is
trained on top of each with CLIP's symmetric contrastive loss: locked-tower training as in LiT
(arXiv 2111.07991). Every recipe is given the same number of steps, as DataComp does.
"""

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors.numpy import load, save

from capmix.embed import ImageEncoder, batched, embeddings_folder, read_embeddings, unit
from capmix.errors import UserError
from capmix.images import BadImageError, decode_image
from capmix.mini.image_tower import DIMENSIONS as IMAGE_DIMENSIONS
from capmix.mini.text_tower import DIMENSIONS as TEXT_DIMENSIONS
from capmix.mini.text_tower import text_tower, text_tower_digest
from capmix.pool import BadSample, Sample, open_pool
from capmix.rows import OK
from capmix.store import Counts, Marker, Store, once

if TYPE_CHECKING:
    import torch

FOLDER = "checkpoints"


@dataclass(frozen=True)
class TinySettings:
    """Settings of the tiny scale, chosen on the development set of the embedded stamps."""

    steps: int = 100
    batch_size: int = 256
    learning_rate: float = 1e-3
    weight_decay: float = 0.1
    dimensions: int = 256
    logit_scale: float = 5.0


@dataclass(frozen=True)
class TrainingSet:
    """Image features float16 (N, 1280) and text vectors float32 (N, 256) of exported samples."""

    images: np.ndarray
    texts: np.ndarray
    counts: Counts


@dataclass(frozen=True)
class TinyClip:
    """A trained student: two linear projections of frozen towers into one space."""

    image_projection: np.ndarray
    text_projection: np.ndarray

    def project_images(self, embeddings: np.ndarray) -> np.ndarray:
        """Unit vectors, float32 (N, D), of image features (N, 1280)."""
        return unit(_scaled(embeddings) @ self.image_projection)

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Unit vectors, float32 (N, D)."""
        return unit(text_tower().encode(texts) @ self.text_projection)


def load_training_set(store: Store, directory: str, encoder: ImageEncoder) -> TrainingSet:
    """Read exported shards; image features come from the work directory where it has them."""
    saved = _saved_embeddings(store, encoder)
    counts, images, texts = Counts(), [], []
    pool = open_pool(directory)
    for shard in pool.shards:
        for batch in batched(pool.read(shard), encoder.batch_size):
            for sample, features in _with_features(batch, saved, encoder):
                if features is None or not isinstance(sample, Sample):
                    counts.failed["unreadable"] += 1
                elif not sample.text or not sample.text.strip():
                    counts.dropped["no_text"] += 1
                else:
                    counts.ok += 1
                    images.append(features)
                    texts.append(sample.text)
    if not texts:
        raise UserError(f"{directory}: no sample with an image and a text to train on")
    return TrainingSet(np.stack(images), text_tower().encode(texts), counts)


def train_tiny(
    store: Store,
    directory: str,
    name: str,
    seeds: Sequence[int],
    encoder: ImageEncoder,
    settings: TinySettings = TinySettings(),
) -> list[str]:
    """Train one student per seed into `checkpoints/<name>/seed<k>`; those there are kept.

    Returns the names of the checkpoints.
    """
    data = Store(directory)
    sizes = data.read_json("sizes.json")
    if sizes is None:
        raise UserError(
            f"{directory}: no sizes.json; `capmix train` reads what `capmix export` wrote"
        )
    shards = open_pool(directory).shards
    inputs = {s.name: data.fingerprint(f"_markers/{s.name}") or s.fingerprint for s in shards}

    @cache
    def training_set() -> TrainingSet:
        return load_training_set(store, directory, encoder)

    names = []
    for seed in seeds:
        part = f"{FOLDER}/{name}/seed{seed}"
        config = {
            "scale": "tiny",
            "seed": seed,
            "image_tower": encoder.name,
            "text_tower": text_tower_digest(),
            **asdict(settings),
        }

        def make(part: str = part, seed: int = seed, config: dict[str, Any] = config) -> Marker:
            samples = training_set()
            student, losses = _fit(samples, seed, settings)
            tensors = {
                "image_projection": student.image_projection,
                "text_projection": student.text_projection,
            }
            store.write_bytes(f"{part}.safetensors", save(tensors))
            counts = samples.counts
            return Marker(inputs, config, counts.total, counts, {"losses": losses})

        once(store, part, inputs, config, make)
        names.append(part)
    return names


def load_tiny(store: Store, checkpoint: str) -> TinyClip:
    """Read a checkpoint of train_tiny. Raises UserError where there is none."""
    try:
        tensors = load(store.fs.cat_file(store.path(f"{checkpoint}.safetensors")))
        return TinyClip(tensors["image_projection"], tensors["text_projection"])
    except (OSError, KeyError, ValueError) as error:
        raise UserError(f"{store.path(checkpoint)}: no tiny checkpoint ({error})") from error


def _fit(data: TrainingSet, seed: int, settings: TinySettings) -> tuple[TinyClip, list[float]]:
    """Train one student; returns it and its loss every tenth of the way."""
    import torch
    from torch.nn import functional

    generator = torch.Generator().manual_seed(seed)
    images = torch.from_numpy(_scaled(data.images))
    texts = torch.from_numpy(data.texts)
    shapes = (IMAGE_DIMENSIONS, settings.dimensions), (TEXT_DIMENSIONS, settings.dimensions)
    weights = [
        torch.randn(s, generator=generator).div_(s[0] ** 0.5).requires_grad_() for s in shapes
    ]
    log_scale = torch.tensor(math.log(settings.logit_scale), requires_grad=True)
    groups = [
        {"params": weights, "weight_decay": settings.weight_decay},
        {"params": [log_scale], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.steps)
    batches = _batches(len(images), settings, generator)
    losses = []
    for step in range(settings.steps):
        rows = next(batches)
        image = functional.normalize(images[rows] @ weights[0], dim=1)
        text = functional.normalize(texts[rows] @ weights[1], dim=1)
        logits = log_scale.exp().clamp(max=100) * image @ text.T
        target = torch.arange(len(rows))
        loss = functional.cross_entropy(logits, target) + functional.cross_entropy(logits.T, target)
        optimizer.zero_grad()
        (loss / 2).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        if (step + 1) % max(1, settings.steps // 10) == 0:
            losses.append(round(float(loss.detach()) / 2, 6))
    projections = [weight.detach().numpy() for weight in weights]
    return TinyClip(*projections), losses


def _batches(
    rows: int, settings: TinySettings, generator: "torch.Generator"
) -> Iterator["torch.Tensor"]:
    """Endless batches: whole shuffled passes, the short rest of a pass left out."""
    import torch

    size = min(settings.batch_size, rows)
    while True:
        order = torch.randperm(rows, generator=generator)
        yield from torch.split(order[: rows // size * size], size)


def _scaled(features: np.ndarray) -> np.ndarray:
    """Square root of the non-negative features, then unit length: float32 (N, 1280)."""
    return unit(np.sqrt(np.maximum(features.astype(np.float32), 0)))


def _saved_embeddings(store: Store, encoder: ImageEncoder) -> dict[str, np.ndarray]:
    saved: dict[str, np.ndarray] = {}
    for part in store.parts(embeddings_folder(encoder.name)):
        rows, array = read_embeddings(store, part)
        good = (row.uid or "" for row in rows if row.status == OK)
        saved.update(zip(good, array, strict=True))
    return saved


def _with_features(
    batch: list[Sample | BadSample], saved: dict[str, np.ndarray], encoder: ImageEncoder
) -> Iterator[tuple[Sample | BadSample, np.ndarray | None]]:
    """Each sample with its features: saved ones, or of the images encoded together; else None."""
    known: dict[str, np.ndarray] = {}
    decoded = {}
    for sample in batch:
        if not isinstance(sample, Sample):
            continue
        if sample.uid in saved:
            known[sample.uid] = saved[sample.uid]
            continue
        with contextlib.suppress(BadImageError):
            decoded[sample.uid] = encoder.prepare(decode_image(sample.image))
    if decoded:
        known |= zip(decoded, encoder.encode_pixels(list(decoded.values())), strict=True)
    for sample in batch:
        yield sample, known.get(sample.uid) if isinstance(sample, Sample) else None

"""Train probes on a subset: small projections of frozen towers, in seconds on a CPU.

Both towers (EfficientNet-Lite0 and the static text table) are frozen. A linear projection is
trained on top of each with CLIP's symmetric contrastive loss: locked-tower training as in LiT
(arXiv 2111.07991). As in DataComp, all recipes are trained for the same number of steps.
"""

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from capmix.errors import UserError
from capmix.mini.image_tower import DIMENSIONS as IMAGE_DIMENSIONS
from capmix.mini.text_tower import DIMENSIONS as TEXT_DIMENSIONS
from capmix.mini.text_tower import text_tower, text_tower_digest
from capmix.mix.subset import SubsetRows
from capmix.models.image_pass import ImageEncoder, read_embeddings, unit
from capmix.storage.draft import Draft
from capmix.storage.layout import PROBES, SUBSETS, embeddings_folder
from capmix.storage.marker import Counts, Marker
from capmix.storage.once import once
from capmix.storage.rows import OK
from capmix.storage.store import Store

if TYPE_CHECKING:
    import torch

MAX_ROWS = 100_000  # about 1 GB of features; a probe sees 25,600 rows


@dataclass(frozen=True)
class FitSettings:
    """Training settings. The defaults were tuned on the development set of the embedded stamps."""

    steps: int = 100
    batch_size: int = 256
    learning_rate: float = 1e-3
    weight_decay: float = 0.1
    dimensions: int = 256
    logit_scale: float = 5.0


@dataclass(frozen=True)
class TrainingSet:
    """Image features, float16 (N, 1280), and text vectors, float32 (N, 256), of a subset's rows."""

    images: np.ndarray
    texts: np.ndarray
    counts: Counts


@dataclass(frozen=True)
class Probe:
    """Two trained linear projections of frozen towers into one space."""

    image_projection: np.ndarray
    text_projection: np.ndarray

    def project_images(self, embeddings: np.ndarray) -> np.ndarray:
        """Return unit vectors, float32 (N, D), for image features (N, 1280)."""
        return unit(_scaled(embeddings) @ self.image_projection)

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Return unit vectors, float32 (N, D)."""
        return unit(text_tower().encode(texts) @ self.text_projection)


def load_training_set(store: Store, subset: str, encoder: ImageEncoder) -> TrainingSet:
    """Load the rows of a subset, repeated by weight, with their saved image features.

    For a large subset, only the rows of some whole shards are loaded: shards are added until there
    are at least MAX_ROWS rows, in the same random order for all subsets. Raises UserError if there
    is no row to train on.
    """
    counts, images, texts = Counts(), [], []
    for table, features in _shards(store, SubsetRows.pinned(store, subset), encoder):
        columns = (table[name].to_pylist() for name in ("uid", "text", "weight"))
        for uid, text, times in zip(*columns, strict=True):
            if uid not in features:
                counts.failed["unreadable"] += times
            elif not text or not text.strip():
                counts.dropped["no_text"] += times
            else:
                counts.ok += times
                images += [features[uid]] * times
                texts += [text] * times
    if not texts:
        raise UserError(f"subset {subset}: no sample with an image and a text to train on")
    return TrainingSet(np.stack(images), text_tower().encode(texts), counts)


def _shards(
    store: Store, rows: SubsetRows, encoder: ImageEncoder
) -> Iterator[tuple[pa.Table, dict[str, np.ndarray]]]:
    """Yield the rows of each chosen shard, and its image features by uid, in pool order."""
    names = rows.shard_names()
    drawn = sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())
    tables: dict[str, pa.Table] = {}
    copies = 0
    while drawn and copies < MAX_ROWS:
        name = drawn.pop()
        tables[name] = rows.of_shard(name)
        copies += sum(tables[name]["weight"].to_pylist())
    for name in names:
        if name in tables:
            kept, array = read_embeddings(store, f"{embeddings_folder(encoder.name)}/{name}")
            good = (row.uid or "" for row in kept if row.status == OK)
            yield tables.pop(name), dict(zip(good, array, strict=True))


def train_probes(
    store: Store,
    subset: str,
    seeds: Sequence[int],
    encoder: ImageEncoder,
    settings: FitSettings = FitSettings(),
) -> list[str]:
    """Train one probe per seed and write it to `probes/<subset>/seed<k>`.

    Probes that are up to date are kept. The pool's images must be embedded. Returns the names of
    the probes. Raises UserError if the subset does not exist.
    """
    part = f"{SUBSETS}/{subset}"
    if store.read_marker(part) is None:
        raise UserError(f"no subset {subset!r} in {store.location}: run `capmix mix` first")
    inputs = {"subset": store.fingerprint(part)}

    @cache
    def training_set() -> TrainingSet:
        return load_training_set(store, subset, encoder)

    names = []
    for seed in seeds:
        name = f"{PROBES}/{subset}/seed{seed}"
        config = {
            "seed": seed,
            "image_tower": encoder.name,
            "text_tower": text_tower_digest(),
            **asdict(settings),
        }

        from safetensors.numpy import save

        def make(
            draft: Draft, name: str = name, seed: int = seed, config: dict[str, Any] = config
        ) -> Marker:
            samples = training_set()
            if store.fingerprint(part) != inputs["subset"]:
                raise UserError(
                    f"subset {subset} was overwritten during the training; rerun the command"
                )
            student, losses = _fit(samples, seed, settings)
            tensors = {
                "image_projection": student.image_projection,
                "text_projection": student.text_projection,
            }
            draft.write_bytes(f"{name}.safetensors", save(tensors))
            counts = samples.counts
            return Marker(inputs, config, counts.total, counts, {"losses": losses})

        once(store, name, inputs, config, make, files=[f"{name}.safetensors"])
        names.append(name)
    return names


def load_probe(store: Store, checkpoint: str) -> Probe:
    """Read a probe written by train_probes. Raises UserError if it cannot be read."""
    from safetensors.numpy import load

    try:
        tensors = load(store.read_part_bytes(f"{checkpoint}.safetensors"))
        return Probe(tensors["image_projection"], tensors["text_projection"])
    except (OSError, KeyError, ValueError) as error:
        raise UserError(f"{store.path(checkpoint)}: cannot read the probe: {error}") from error


def _fit(data: TrainingSet, seed: int, settings: FitSettings) -> tuple[Probe, list[float]]:
    """Train one probe. Returns it, and its loss after each tenth of the steps."""
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
    return Probe(*projections), losses


def _batches(
    rows: int, settings: FitSettings, generator: "torch.Generator"
) -> Iterator["torch.Tensor"]:
    """Yield batches without end: shuffled passes; the incomplete last batch of each is dropped."""
    import torch

    size = min(settings.batch_size, rows)
    while True:
        order = torch.randperm(rows, generator=generator)
        yield from torch.split(order[: rows // size * size], size)


def _scaled(features: np.ndarray) -> np.ndarray:
    """Take the square root of the non-negative features and normalize: float32 (N, 1280)."""
    return unit(np.sqrt(np.maximum(features.astype(np.float32), 0)))

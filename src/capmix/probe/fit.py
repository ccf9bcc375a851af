"""Train probes on a subset: small models over frozen image vectors, in seconds on a CPU.

The image vectors are saved embeddings (images.py). A linear projection is trained on top of them,
together with a text side (texts.py), with CLIP's symmetric contrastive loss: locked-image training
as in LiT (arXiv 2111.07991). As in DataComp, all recipes are trained for the same number of steps.
"""

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from capmix.errors import UserError
from capmix.mix.subset import SubsetRows
from capmix.models.image_pass import unit
from capmix.probe.texts import projection
from capmix.probe.towers import MINI_TOWERS, Towers
from capmix.storage.draft import Draft
from capmix.storage.layout import PROBES, SUBSETS
from capmix.storage.marker import Counts, Marker
from capmix.storage.once import once
from capmix.storage.store import Store

if TYPE_CHECKING:
    import torch

IMAGES = "image_projection"


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
    """Image vectors, float16 (N, D), and prepared texts (N, ...), of a subset's rows."""

    images: np.ndarray
    texts: np.ndarray
    counts: Counts


@dataclass(frozen=True)
class Probe:
    """A trained projection of image vectors, and the trained weights of the text side, by name."""

    image_projection: np.ndarray
    text_weights: Mapping[str, np.ndarray]
    towers: Towers = field(default_factory=Towers)

    def project_images(self, embeddings: np.ndarray) -> np.ndarray:
        """Return unit vectors, float32 (N, D), for image vectors (N, dimensions)."""
        return unit(self.towers.images.scaled(embeddings) @ self.image_projection)

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Return unit vectors, float32 (N, D)."""
        return unit(self.towers.texts.project(self.text_weights, texts))


def load_training_set(store: Store, subset: str, towers: Towers = MINI_TOWERS) -> TrainingSet:
    """Load the rows of a subset, repeated by weight, with their saved image vectors.

    For a large subset, only the rows of some whole shards are loaded: shards are added until there
    are at least `towers.max_rows` rows, in the same random order for all subsets. Raises UserError
    if there is no row to train on, or no embeddings of a shard.
    """
    counts = Counts()
    images: list[np.ndarray] = []
    texts: list[str] = []
    for table, place, array in _shards(store, SubsetRows.pinned(store, subset), towers):
        rows: list[int] = []
        columns = (table[name].to_pylist() for name in ("uid", "text", "weight"))
        for uid, text, times in zip(*columns, strict=True):
            row = place.get(uid)
            if row is None:
                counts.failed["unreadable"] += times
            elif not text or not text.strip():
                counts.dropped["no_text"] += times
            else:
                counts.ok += times
                rows += [row] * times
                texts += [text] * times
        images.append(array[rows])
    if not texts:
        raise UserError(f"subset {subset}: no sample with an image and a text to train on")
    vectors = _joined(images, towers)
    images.clear()  # the parts are as large as the vectors
    return TrainingSet(vectors, towers.texts.prepare(texts), counts)


def _joined(images: Sequence[np.ndarray], towers: Towers) -> np.ndarray:
    some = [array for array in images if len(array)]
    widths = {array.shape[1] for array in some}
    if len(widths) > 1:
        raise UserError(
            f"embeddings {towers.images.name}: shards with different dimensions "
            f"({', '.join(map(str, sorted(widths)))}); delete embeddings/{towers.images.name} in "
            "the work directory and compute them again"
        )
    return np.concatenate(some)


def _shards(
    store: Store, rows: SubsetRows, towers: Towers
) -> Iterator[tuple[pa.Table, dict[str, int], np.ndarray]]:
    """Yield the rows of each chosen shard, its image vectors, and the place of each uid in them, in
    pool order."""
    names = rows.shard_names()
    drawn = sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())
    tables: dict[str, pa.Table] = {}
    copies = 0
    while drawn and copies < towers.max_rows:
        name = drawn.pop()
        tables[name] = rows.of_shard(name)
        copies += sum(tables[name]["weight"].to_pylist())
    for name in names:
        if name in tables:
            yield tables.pop(name), *towers.images.of_shard(store, name)


def train_probes(
    store: Store,
    subset: str,
    seeds: Sequence[int],
    towers: Towers = MINI_TOWERS,
    settings: FitSettings = FitSettings(),
) -> list[str]:
    """Train one probe per seed and write it to `probes/<subset>/<variant>/seed<k>`.

    Probes that are up to date are kept. The pool's images must be embedded. Returns the names of
    the probes. Raises UserError if the subset does not exist.
    """
    part = f"{SUBSETS}/{subset}"
    if store.read_marker(part) is None:
        raise UserError(f"no subset {subset!r} in {store.location}: run `capmix mix` first")
    inputs = {"subset": store.fingerprint(part)}

    @cache
    def training_set() -> TrainingSet:
        return load_training_set(store, subset, towers)

    names = []
    for seed in seeds:
        name = f"{PROBES}/{towers.place(subset, seed)}"
        config = {"seed": seed, **towers.config, **asdict(settings)}

        from safetensors.numpy import save

        def make(
            draft: Draft, name: str = name, seed: int = seed, config: dict[str, Any] = config
        ) -> Marker:
            samples = training_set()
            if store.fingerprint(part) != inputs["subset"]:
                raise UserError(
                    f"subset {subset} was overwritten during the training; rerun the command"
                )
            student, losses = _fit(samples, seed, settings, towers)
            tensors = {IMAGES: student.image_projection, **student.text_weights}
            draft.write_bytes(f"{name}.safetensors", save(tensors))
            counts = samples.counts
            return Marker(inputs, config, counts.total, counts, {"losses": losses})

        once(store, name, inputs, config, make, files=[f"{name}.safetensors"])
        names.append(name)
    return names


def load_probe(store: Store, checkpoint: str, towers: Towers = MINI_TOWERS) -> Probe:
    """Read a probe written by train_probes. Raises UserError if it cannot be read."""
    from safetensors.numpy import load

    try:
        tensors = load(store.read_part_bytes(f"{checkpoint}.safetensors"))
        return Probe(tensors.pop(IMAGES), tensors, towers)
    except (OSError, KeyError, ValueError) as error:
        raise UserError(f"{store.path(checkpoint)}: cannot read the probe: {error}") from error


def _fit(
    data: TrainingSet, seed: int, settings: FitSettings, towers: Towers = MINI_TOWERS
) -> tuple[Probe, list[float]]:
    """Train one probe. Returns it, and its loss after each tenth of the steps."""
    import torch
    from torch.nn import functional

    generator = torch.Generator().manual_seed(seed)
    weights = {IMAGES: projection((data.images.shape[1], settings.dimensions), generator)}
    weights |= towers.texts.start(settings.dimensions, generator)
    log_scale = torch.tensor(math.log(settings.logit_scale), requires_grad=True)
    matrices = [weight for weight in weights.values() if weight.ndim > 1]
    vectors = [weight for weight in weights.values() if weight.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": settings.weight_decay},
        {"params": [*vectors, log_scale], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.steps)
    batches = _batches(len(data.images), settings, generator)
    losses = []
    for step in range(settings.steps):
        rows = next(batches).numpy()
        images = torch.from_numpy(towers.images.scaled(data.images[rows]))
        image = functional.normalize(images @ weights[IMAGES], dim=1)
        text = functional.normalize(towers.texts.encode(weights, data.texts[rows]), dim=1)
        logits = log_scale.exp().clamp(max=100) * image @ text.T
        target = torch.arange(len(rows))
        loss = functional.cross_entropy(logits, target) + functional.cross_entropy(logits.T, target)
        optimizer.zero_grad()
        (loss / 2).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        if (step + 1) % max(1, settings.steps // 10) == 0:
            losses.append(round(float(loss.detach()) / 2, 6))
    trained = {name: weight.detach().numpy() for name, weight in weights.items()}
    return Probe(trained.pop(IMAGES), trained, towers), losses


def _batches(
    rows: int, settings: FitSettings, generator: "torch.Generator"
) -> Iterator["torch.Tensor"]:
    """Yield batches without end: shuffled passes; the incomplete last batch of each is dropped."""
    import torch

    size = min(settings.batch_size, rows)
    while True:
        order = torch.randperm(rows, generator=generator)
        yield from torch.split(order[: rows // size * size], size)

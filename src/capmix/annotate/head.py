"""Predictors on saved embeddings: a linear layer, or an MLP, from a safetensors file.

The layers are the tensors `N.weight` or `PREFIX.N.weight`, as of a torch.nn.Sequential, in the
order of N; a single layer may be named `weight`. Dropout has no weights and no effect here. An
activation has a number of its own in a Sequential, so there is none between layers N and N + 1.
"""

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from capmix.annotate.settings import AnnotateSettings
from capmix.annotate.vectors import Columns, PoolVectors
from capmix.errors import UserError
from capmix.models.registry import require
from capmix.storage.rows import STATUS

MAX_BYTES = 1 << 28
MAX_OUTPUTS = 64
MAX_WIDTH = 16_384  # outputs of a layer: 1 GiB for the vectors of a batch
AT_ONCE = 16_384  # vectors
NAME = re.compile(r"(?:(?P<module>.*\.)?(?P<number>\d{1,4})\.)?(?P<kind>weight|bias)")
COLUMN = re.compile(r"[a-z][a-z0-9_]{0,62}")
EXPECTED = (
    "expected a .safetensors file with float tensors N.weight (outputs, inputs) and N.bias "
    "(outputs) for each layer N"
)


class HeadLayer(NamedTuple):
    """Weight float32 (outputs, inputs), bias float32 (outputs,), and the layer's number."""

    weight: np.ndarray
    bias: np.ndarray
    number: int


@dataclass(frozen=True)
class EmbeddingHead:
    """Layers, and the digest of their file."""

    layers: list[HeadLayer]
    digest: str

    @property
    def inputs(self) -> int:
        return int(self.layers[0].weight.shape[1])

    @property
    def outputs(self) -> int:
        return len(self.layers[-1].bias)


def read_head(path: str) -> EmbeddingHead:
    """Read the layers of a head. Raises UserError if the file is not one, or is too large."""
    require(["safetensors"], "annotate head", "mini")
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        size = Path(path).stat().st_size
        if size > MAX_BYTES:
            raise UserError(f"--weights {path}: {size:,} bytes exceed the limit of {MAX_BYTES:,}")
        data = Path(path).read_bytes()
        tensors = load(data)
    except OSError as error:
        raise UserError(f"--weights {path}: {error.strerror or error}; {EXPECTED}") from error
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        why = " ".join(str(error).split())[:200]
        raise UserError(f"--weights {path}: {why}; {EXPECTED}") from error
    return EmbeddingHead(_layers(path, tensors), hashlib.sha256(data).hexdigest()[:32])


def _layers(path: str, tensors: Mapping[str, np.ndarray]) -> list[HeadLayer]:
    """Return the layers in order. Raises UserError if the tensors are not those of one head."""

    def wrong(why: str) -> UserError:
        return UserError(f"--weights {path}: {why}; {EXPECTED}")

    found: dict[int, dict[str, np.ndarray]] = {}
    modules = set()
    for name, tensor in tensors.items():
        parts = NAME.fullmatch(name)
        if parts is None:
            raise wrong(f"tensor {name!r:.80} is not of a linear layer")
        if tensor.dtype not in (np.float16, np.float32, np.float64):
            raise wrong(f"tensor {name!r:.80} is {tensor.dtype}")
        values = tensor.astype(np.float32)
        if not np.isfinite(values).all():
            raise wrong(f"tensor {name!r:.80} has NaN or infinity")
        found.setdefault(int(parts["number"] or 0), {})[parts["kind"]] = values
        modules.add((parts["module"], parts["number"] is None))
    if len(modules) > 1:
        raise wrong("the layers are of several modules")
    layers: list[HeadLayer] = []
    for number, tensors_of in sorted(found.items()):
        weight = tensors_of.get("weight", np.zeros(0))
        if weight.ndim != 2 or not weight.size:
            raise wrong(f"layer {number} has no weight of two dimensions")
        bias = tensors_of.get("bias", np.zeros(len(weight), np.float32))
        if bias.shape != weight.shape[:1]:
            raise wrong(f"layer {number}: weight {weight.shape} and bias {bias.shape}")
        if layers and weight.shape[1] != len(layers[-1].bias):
            width = len(layers[-1].bias)
            raise wrong(f"layer {number} has {weight.shape[1]} inputs after {width} outputs")
        if len(bias) > MAX_WIDTH:
            raise wrong(f"layer {number}: {len(bias):,} outputs exceed the limit of {MAX_WIDTH:,}")
        layers.append(HeadLayer(weight, bias, number))
    if not layers:
        raise wrong("no tensors")
    if len(layers[-1].bias) > MAX_OUTPUTS:
        raise wrong(f"{len(layers[-1].bias)} outputs exceed the limit of {MAX_OUTPUTS}")
    return layers


def predict(head: EmbeddingHead, vectors: np.ndarray, settings: AnnotateSettings) -> np.ndarray:
    """Return the head's outputs, float32 (n, outputs), for vectors (n, inputs).

    The vectors are used as they are, normalized or not.
    """
    found = np.asarray(vectors, np.float32)
    before: int | None = None
    for weight, bias, number in head.layers:
        if settings.activation == "relu" and before is not None and number > before + 1:
            found = np.maximum(found, np.float32(0))
        found = found @ weight.T + bias
        before = number
    if settings.output == "sigmoid":
        # exp of a large number would overflow.
        small = np.exp(-np.abs(found))
        found = np.where(found >= 0, 1, small) / (1 + small)
    elif settings.output == "softmax":
        shares = np.exp(found - found.max(axis=1, keepdims=True))
        found = shares / shares.sum(axis=1, keepdims=True)
    return found.astype(np.float32, copy=False)


def head_columns(
    vectors: PoolVectors, embeddings: str, head: EmbeddingHead, settings: AnnotateSettings
) -> Columns:
    """Compute the settings' column; with several outputs, COLUMN_0, COLUMN_1 and so on.

    `embeddings` is their name. Raises UserError if they do not have the head's dimensions.
    """
    width = int(vectors.array.shape[1])
    if width != head.inputs:
        raise UserError(
            f"--weights {settings.weights}: the head takes {head.inputs} dimensions, but the "
            f"embeddings {embeddings!r} have {width}. Pass the --embeddings that it was trained on"
        )
    found = [predict(head, batch, settings) for batch in _batches(vectors, settings)]
    values = np.concatenate(found)
    if head.outputs == 1:
        return {settings.column: (values[:, 0], pa.float32())}
    return {
        f"{settings.column}_{number}": (np.ascontiguousarray(values[:, number]), pa.float32())
        for number in range(head.outputs)
    }


def _batches(vectors: PoolVectors, settings: AnnotateSettings) -> Iterator[np.ndarray]:
    if settings.normalize:
        yield from vectors.batches()
        return
    for start in range(0, len(vectors), AT_ONCE):
        yield np.asarray(vectors.array[start : start + AT_ONCE], np.float32)


def check_column(name: str) -> None:
    """Raise UserError unless `name` can be a column's name in recipes."""
    if not COLUMN.fullmatch(name) or name in STATUS:
        raise UserError(
            f"--column {name!r:.80}: expected a lower-case letter, then letters, digits or '_', "
            f"and none of {', '.join(STATUS)}"
        )

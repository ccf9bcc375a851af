"""Models without cost, to test the engine in isolation, and models that misbehave.

They are module-level functions, which an engine of several processes can pickle.
"""

import contextlib
import hashlib
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from capmix.caption.captioner import Caption
from capmix.caption.image_stage import image_caption_stage
from capmix.engine.batches import BATCH_TIMEOUT
from capmix.engine.stage import Stage
from capmix.models.tokens import Tokens
from capmix.pool import Pool, Sample
from capmix.score.stage import ImagePass, fresh_score_stage
from capmix.storage.store import Store


class NullCaptioner:
    """Two captions per image, determined by its uid; each image takes `seconds`."""

    def __init__(self, seconds: float = 0.0, batch_size: int = 16):
        self.settings: dict[str, Any] = {"model": "null"}
        self.batch_size, self.workers = batch_size, 2
        self.seconds = seconds

    def prepare(self, sample: Sample) -> str:
        return hashlib.sha256(sample.image).hexdigest()[:8]

    def caption(
        self, prepared: Sequence[str], uids: Sequence[str], source: str
    ) -> list[list[Caption]]:
        time.sleep(self.seconds * len(uids))
        return [
            [Caption(f"{digest} number {k} of {uid} by {source}") for k in range(2)]
            for digest, uid in zip(prepared, uids, strict=True)
        ]


def null_captions(pool: Pool, source: str = "null", seconds: float = 0.0) -> list[Stage]:
    return [image_caption_stage(pool, NullCaptioner(seconds), source)]


class NullScorer:
    """Embed the bytes of an image or text as a vector of 8 numbers."""

    name = "null"
    settings: dict[str, Any] = {"model": "null"}  # noqa: RUF012
    dimensions, batch_size, workers = 8, 16, 2
    input_side: int | None = None

    @property
    def encoder(self) -> "NullScorer":
        return self

    def load(self) -> None:
        pass

    def prepare(self, image: Image.Image) -> np.ndarray:
        return _vector(image.tobytes())

    def encode_pixels(self, pixels: Sequence[np.ndarray]) -> np.ndarray:
        return np.stack(pixels)

    def project_images(self, embeddings: np.ndarray) -> np.ndarray:
        return embeddings.astype(np.float32)

    def tokenize(self, texts: Sequence[str]) -> Tokens:
        return Tokens(texts, [len(text) > 70 for text in texts])

    def encode_tokens(self, inputs: Sequence[str]) -> np.ndarray:
        return np.stack([_vector(text.encode()) for text in inputs])


def null_scores(pool: Pool, store: Store, sources: Sequence[str]) -> list[Stage]:
    scorer = NullScorer()
    images = ImagePass(pool, scorer)
    return [fresh_score_stage(store, scorer, source, images) for source in sources]


def _vector(data: bytes) -> np.ndarray:
    digest = np.frombuffer(hashlib.sha256(data).digest()[:8], np.uint8).astype(np.float32)
    vector: np.ndarray = digest / np.linalg.norm(digest)
    return vector


def deadly_captions(pool: Pool, folder: str, times: int, key: str) -> list[Stage]:
    """Exit the process at the sample `key`, `times` times in total; `folder` holds the count."""
    return [image_caption_stage(pool, _Deadly(folder, times, key), "null")]


class _Deadly(NullCaptioner):
    def __init__(self, folder: str, times: int, key: str):
        super().__init__()
        self._folder, self._times, self._key = Path(folder), times, key

    def prepare(self, sample: Sample) -> str:
        if not self._key:
            os._exit(7)
        if sample.key == self._key and len(list(self._folder.iterdir())) < self._times:
            (self._folder / str(time.monotonic_ns())).touch()
            os._exit(7)
        return super().prepare(sample)


def captions_killed_by(pool: Pool, keys: Sequence[str]) -> list[Stage]:
    """Exit the process at each sample with one of these keys."""
    return [image_caption_stage(pool, _KilledBy(keys), "null")]


class _KilledBy(NullCaptioner):
    def __init__(self, keys: Sequence[str]):
        super().__init__()
        self._keys = set(keys)

    def prepare(self, sample: Sample) -> str:
        if sample.key in self._keys:
            os._exit(7)
        return super().prepare(sample)


def failing_captions(pool: Pool, uids: Sequence[str]) -> list[Stage]:
    """A model that raises an error for some images."""
    return [image_caption_stage(pool, Failing(uids), "null")]


class Failing(NullCaptioner):
    def __init__(self, uids: Sequence[str]):
        super().__init__()
        self._uids = set(uids)

    def caption(
        self, prepared: Sequence[str], uids: Sequence[str], source: str
    ) -> list[list[Caption]]:
        if self._uids & set(uids):
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return super().caption(prepared, uids, source)


def hung_captions(pool: Pool, uid: str, timeout: float = BATCH_TIMEOUT) -> list[Stage]:
    """A model that hangs on one image."""
    return [image_caption_stage(pool, _Hung(uid), "null", batch_timeout=timeout)]


class _Hung(NullCaptioner):
    def __init__(self, uid: str):
        super().__init__()
        self._uid = uid

    def caption(
        self, prepared: Sequence[str], uids: Sequence[str], source: str
    ) -> list[list[Caption]]:
        while self._uid in uids:
            time.sleep(1)
        return super().caption(prepared, uids, source)


def stuck_captions(pool: Pool, uid: str, timeout: float) -> list[Stage]:
    """Like hung_captions, but cannot be interrupted."""
    return [image_caption_stage(pool, _Stuck(uid), "null", batch_timeout=timeout)]


class _Stuck(_Hung):
    def caption(
        self, prepared: Sequence[str], uids: Sequence[str], source: str
    ) -> list[list[Caption]]:
        if self._uid in uids:
            while True:  # ignores interrupts, like native code
                with contextlib.suppress(BaseException):
                    time.sleep(1000)
        return NullCaptioner.caption(self, prepared, uids, source)


def captions_of_devices(pool: Pool) -> list[Stage]:
    """Captions that name the GPU visible to their process, and its CPU cores."""
    return [image_caption_stage(pool, _Device(0.01), "null")]


class _Device(NullCaptioner):
    def caption(
        self, prepared: Sequence[str], uids: Sequence[str], source: str
    ) -> list[list[Caption]]:
        super().caption(prepared, uids, source)
        cores = " ".join(map(str, sorted(os.sched_getaffinity(0))))
        about = f"GPU {os.environ.get('CUDA_VISIBLE_DEVICES')} with cores {cores}"
        return [[Caption(about)] for _ in uids]


def captions_of_one_process(pool: Pool, folder: str) -> list[Stage]:
    """Only the first process starts; all others exit."""
    try:
        (Path(folder) / "taken").touch(exist_ok=False)
    except FileExistsError:
        os._exit(3)
    return null_captions(pool)


def captions_of_no_process(pool: Pool) -> list[Stage]:
    """A process that plans, and exits at the first image of any shard."""
    return [image_caption_stage(pool, _Deadly("/", 99, ""), "null")]


def captions_of_changing_settings(pool: Pool, folder: str) -> list[Stage]:
    """Settings with the number of processes started before, like a Hub model that changes."""
    captioner = NullCaptioner(0.01)
    captioner.settings = {"model": "null", "revision": len(list(Path(folder).iterdir()))}
    (Path(folder) / str(os.getpid())).touch()
    return [image_caption_stage(pool, captioner, "null")]


def captions_of_few_shards(pool: Pool, deadly: int) -> list[Stage]:
    """A model whose process exits at each of the first shards, every time."""
    return [image_caption_stage(pool, _DeadlyShards(deadly), "null")]


class _DeadlyShards(NullCaptioner):
    def __init__(self, deadly: int):
        super().__init__()
        self._deadly = deadly

    def prepare(self, sample: Sample) -> str:
        if int(sample.key[:5]) < self._deadly:
            os._exit(7)
        return super().prepare(sample)

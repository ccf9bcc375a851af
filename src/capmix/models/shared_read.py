"""Index the samples of a shard while another stage reads its images, so that it is read once.

The stages stay separate, each with its own parts and markers. `SharedRead` is the pool that the
other stages read: it collects the rows of the index on the way. Rows of a shard that was not read
to its end are discarded; then the index stage reads the shard itself, as it does for shards that
the other stages do not read.
"""

import threading
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import replace

from capmix.engine.stage import PartWriter, Stage, is_done
from capmix.models.index import IndexRows, index_stages
from capmix.pool import BadSample, ImagePool, Pool, Sample, Shard
from capmix.storage.store import Store

HELD = 2  # shards whose rows are kept until the index stage takes them: the next may be read ahead
MakeFromPool = Callable[[ImagePool], Sequence[Stage]]


class SharedRead:
    """A pool whose reads also collect the index of shards that are not indexed yet."""

    def __init__(self, pool: Pool, is_indexed: Callable[[Shard], bool]):
        self._pool, self._is_indexed = pool, is_indexed
        self._collected: dict[str, IndexRows] = {}
        self._lock = threading.Lock()  # a shard may be read in another thread

    @property
    def is_folder(self) -> bool:
        """See Pool."""
        return self._pool.is_folder

    def read(
        self, shard: Shard, keys: Container[str] | None = None
    ) -> Iterator[Sample | BadSample]:
        """Stream the samples of a shard; see Pool. With `keys`, nothing is collected."""
        samples = self._pool.read(shard, keys)
        if keys is not None or self._is_indexed(shard):
            return samples
        return self._collecting(shard, samples)

    def take(self, shard: Shard) -> IndexRows | None:
        """Return the rows of a shard that was read to its end, once; None if there are none."""
        with self._lock:
            return self._collected.pop(shard.name, None)

    def _collecting(
        self, shard: Shard, samples: Iterator[Sample | BadSample]
    ) -> Iterator[Sample | BadSample]:
        found = IndexRows()
        for sample in samples:
            found.add(sample)
            yield sample
        with self._lock:
            while len(self._collected) >= HELD:  # indexed meanwhile by another run
                del self._collected[next(iter(self._collected))]
            self._collected[shard.name] = found


def with_index(pool: Pool, store: Store, make: MakeFromPool) -> list[Stage]:
    """Return the index stage, followed by the stages that `make` creates and that read all images.

    The first of these reads each shard, or they share an image pass.
    """
    (alone,) = index_stages(pool)
    shared = SharedRead(pool, lambda shard: is_done(alone, shard, store))
    stages = list(make(shared))
    first = stages[0]
    if first.image_pass is None:
        (index,) = index_stages(pool, lambda shard, _: shared.take(shard))
        return [replace(index, rides_on=first.folder), *stages]

    # The scores of the raw texts need the index, so the index stage runs the image pass.
    def after_image_pass(shard: Shard, out: PartWriter) -> IndexRows | None:
        if first.image_pass and not all(is_done(stage, shard, store) for stage in stages):
            first.image_pass(shard, out.busy)
        return shared.take(shard)

    (index,) = index_stages(pool, after_image_pass)
    return [replace(index, name="index and embed"), *stages]

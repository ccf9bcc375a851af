"""Some samples of a pool: those that `--limit`, `--where` and `--uids` leave."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import xxhash

SELECTED = "selected"  # of a marker's inputs
NOT_SELECTED = "not_selected"  # the reason of rows that are dropped
WHY_NOT = "not among the samples that were asked for"


@dataclass(frozen=True)
class Selection:
    """Which rows of the index are selected: a bit for each, as np.packbits gives them, by shard.

    A shard without bits has none. All samples of the shards in `whole` are selected.
    """

    bits: Mapping[str, bytes]
    whole: frozenset[str] = frozenset()

    def rows(self, shard: str, count: int) -> np.ndarray:
        """bool (count,): which of the index's rows of a shard are selected. Raises OSError where
        the index has another number of rows than when they were selected."""
        packed = np.frombuffer(self.bits.get(shard, b""), np.uint8)
        if not len(packed):
            return np.zeros(count, bool)
        if len(packed) != -(-count // 8):
            raise OSError(f"the index of shard {shard} was written again meanwhile")
        return np.unpackbits(packed, count=count).astype(bool)

    def fingerprint(self, shard: str) -> str:
        """Digest of the selected rows of a shard; "" where all are."""
        if shard in self.whole:
            return ""
        return xxhash.xxh3_128(self.bits.get(shard, b"")).hexdigest()

    def inputs(self, shard: str) -> dict[str, str]:
        """What a marker says of it."""
        found = self.fingerprint(shard)
        return {SELECTED: found} if found else {}

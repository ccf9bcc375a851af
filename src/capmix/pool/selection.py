"""A selection of a pool's samples, made by `--limit`, `--where` and `--uids`."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import xxhash

SELECTED = "selected"  # key in a marker's inputs
NOT_SELECTED = "not_selected"  # reason of the dropped rows
WHY_NOT = "not among the selected samples"


@dataclass(frozen=True)
class Selection:
    """The selected rows of the index: one bit per row, packed by np.packbits, by shard.

    In a shard without bits no row is selected; in the shards in `whole` all rows are.
    """

    bits: Mapping[str, bytes]
    whole: frozenset[str] = frozenset()

    def rows(self, shard: str, count: int) -> np.ndarray:
        """Return bool (count,): which of a shard's rows are selected.

        Raises OSError if `count` differs from the number of rows at the time of the selection.
        """
        packed = np.frombuffer(self.bits.get(shard, b""), np.uint8)
        if not len(packed):
            return np.zeros(count, bool)
        if len(packed) != -(-count // 8):
            raise OSError(f"the index of shard {shard} was overwritten after the selection")
        return np.unpackbits(packed, count=count).astype(bool)

    def fingerprint(self, shard: str) -> str:
        """Return a digest of the selected rows of a shard; "" if all are selected."""
        if shard in self.whole:
            return ""
        return xxhash.xxh3_128(self.bits.get(shard, b"")).hexdigest()

    def inputs(self, shard: str) -> dict[str, str]:
        """Return the entry for a marker's inputs; empty if all rows are selected."""
        found = self.fingerprint(shard)
        return {SELECTED: found} if found else {}

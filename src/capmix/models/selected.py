"""The selected samples of a stage, and the existing parts that include them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from capmix.pool import Shard
from capmix.pool.selection import NOT_SELECTED, SELECTED, WHY_NOT, Selection
from capmix.storage.compare import same_settings
from capmix.storage.layout import SAMPLES
from capmix.storage.rows import DROPPED, Row
from capmix.storage.store import Store


@dataclass(frozen=True)
class SelectedSamples:
    """The samples of a selection, looked up in the index."""

    store: Store
    selection: Selection

    def of(self, shard: str) -> dict[str, str] | None:
        """Return the keys of a shard's selected samples by uid; None if all are selected."""
        if not self.selection.fingerprint(shard):
            return None
        index = self.store.read_table(f"{SAMPLES}/{shard}.parquet", ["uid", "key"])
        chosen = index.filter(pa.array(self.selection.rows(shard, len(index))))
        return dict(zip(chosen["uid"].to_pylist(), chosen["key"].to_pylist(), strict=True))

    def are_in(self, part: str, shard: str) -> bool:
        """Whether a part written for another selection includes all of these samples."""
        chosen = self.of(shard)
        if chosen is None:
            return False
        table = self.store.read_table(f"{part}.parquet", ["key", "reason"])
        keys, reasons = table["key"].to_pylist(), table["reason"].to_pylist()
        missing = {k for k, reason in zip(keys, reasons, strict=True) if reason == NOT_SELECTED}
        return missing.isdisjoint(chosen.values())


def not_selected(uid: str | None, key: str) -> Row:
    """Return the row of a sample that is not selected."""
    return Row(uid, key, DROPPED, NOT_SELECTED, WHY_NOT)


@dataclass(frozen=True)
class LargerParts:
    """Reuse (see engine/redo.py) whole parts that include more samples than the selected ones."""

    samples: SelectedSamples
    folder: str
    config: dict[str, Any]
    defaults: Mapping[str, Any]
    inputs: Callable[[Shard], dict[str, str]]

    def keeps(self, config: Mapping[str, Any]) -> bool:
        """Return false: a part is reused as a whole or recomputed as a whole."""
        return False

    def suffices(self, shard: Shard) -> bool:
        """Whether the part has the same inputs and settings and includes the selected samples."""
        store, part = self.samples.store, f"{self.folder}/{shard.name}"
        marker = store.read_marker(part)
        if marker is None or not store.has_sizes(marker):
            return False
        if without_selection(marker.inputs) != without_selection(self.inputs(shard)):
            return False
        if not same_settings(marker.config, self.config, self.defaults):
            return False
        return SELECTED not in marker.inputs or self.samples.are_in(part, shard.name)

    def redo(self, shard: Shard) -> None:
        """Return None: all rows of a part are recomputed."""
        return None


def without_selection(inputs: Mapping[str, str]) -> dict[str, str]:
    """Return the inputs of a part without its selection."""
    return {name: one for name, one in inputs.items() if name != SELECTED}

"""Choose samples by count, condition and list: `--limit`, `--where` and `--uids`."""

import logging
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from capmix.errors import UserError, reason
from capmix.mix.columns import Column
from capmix.mix.select import matching, names_in
from capmix.mix.uids import UidList
from capmix.pool import Pool, Shard
from capmix.pool.selection import Selection
from capmix.pool.settings import SelectSettings
from capmix.storage.layout import SAMPLES
from capmix.storage.rows import OK
from capmix.storage.store import Store

log = logging.getLogger(__name__)
MAX_LIST = 1 << 28  # bytes of a text file of names
WHERE = "--where"
AT_ONCE = 64  # most shards in one group


class Chooser:
    """Scans an indexed pool, stopping at the limit, and records which samples are chosen.

    Raises UserError for a condition that is not valid in recipes, and for an unreadable list.
    """

    def __init__(self, store: Store, settings: SelectSettings):
        self._store, self._settings = store, settings
        where = settings.where
        self.names = names_in(where) if where is not None else frozenset[str]()
        self._listed = None if settings.uids is None else NameList(settings.uids)
        self._left = settings.limit
        self._bits: dict[str, bytes] = {}
        self._whole: set[str] = set()
        self._count = 0

    @property
    def is_full(self) -> bool:
        """Whether the limit is reached."""
        return self._left == 0

    def look_at(self, pool: Pool, columns: Mapping[str, Column], shards: Sequence[Shard]) -> None:
        """Choose among the samples of these shards.

        The types of the `columns` in the condition are those in all shards of `pool`, which must be
        indexed.
        """
        for shard, where in self._matching(pool, columns, shards):
            if self.is_full:
                break
            self._add(shard, where)

    def selection(self) -> Selection:
        """Return the chosen samples. Logs names that were not found; raises UserError if no sample
        is chosen."""
        if not self._count:
            raise UserError(f"{_options(self._settings)}: selects no sample of the pool")
        if self._listed is not None and self._settings.limit is None:
            self._listed.report(self._settings.uids or "")
        log.info("%s samples selected", f"{self._count:,}")
        return Selection(self._bits, frozenset(self._whole))

    def shards(self, pool: Pool) -> list[Shard]:
        """Return the shards with chosen samples; without a limit, all shards."""
        if self._settings.limit is None:
            return pool.shards
        return [shard for shard in pool.shards if any(self._bits.get(shard.name, b""))]

    def _matching(
        self, pool: Pool, columns: Mapping[str, Column], shards: Sequence[Shard]
    ) -> Iterator[tuple[Shard, pa.Table | None]]:
        if self._settings.where is None:
            yield from ((shard, None) for shard in shards)
            return
        yield from matching(self._store, pool, columns, self._settings.where, shards)

    def _add(self, shard: Shard, where: pa.Table | None) -> None:
        part = f"{SAMPLES}/{shard.name}.parquet"
        index = self._store.read_table(part, ["uid", "key", "status"])
        ok = _mask(pc.equal(index["status"], OK))
        chosen = ok.copy()
        if where is not None:
            chosen &= _mask(pc.is_in(index["key"], value_set=where["key"].combine_chunks()))
        if self._listed is not None:
            chosen &= self._listed.contains(index["uid"], index["key"])
        if self._left is not None:
            chosen &= np.cumsum(chosen) <= self._left
            self._left -= int(chosen.sum())
        self._count += int(chosen.sum())
        self._bits[shard.name] = np.packbits(chosen).tobytes()
        if (chosen | ~ok).all():
            self._whole.add(shard.name)


class NameList:
    """uids from a .npy file in DataComp's format, or uids or keys from a text file, one per line.

    Raises UserError if the file cannot be read.
    """

    def __init__(self, path: str):
        self._pairs = UidList(path) if path.endswith(".npy") else None
        self._names = pa.array([], pa.string()) if self._pairs else _read_names(path)
        self._found: set[str] = set()

    def contains(self, uids: pa.ChunkedArray, keys: pa.ChunkedArray) -> np.ndarray:
        """Return which of N samples are in the list, bool (N,). uids may be null."""
        if self._pairs is not None:
            known = pc.fill_null(uids, "0" * 32).combine_chunks()
            is_listed: np.ndarray = self._pairs.times(known) > 0
            is_listed &= _mask(pc.is_valid(uids))
            return is_listed
        by_uid, by_key = (_mask(pc.is_in(one, value_set=self._names)) for one in (uids, keys))
        self._found.update(uids.filter(pa.array(by_uid)).to_pylist())
        self._found.update(keys.filter(pa.array(by_key)).to_pylist())
        either: np.ndarray = by_uid | by_key
        return either

    def report(self, path: str) -> None:
        """Warn about names that no sample of the pool has."""
        missing = [name for name in self._names.to_pylist() if name not in self._found]
        if missing:
            log.warning(
                "--uids %s: %s of %s are not in the pool, for example %r",
                path, f"{len(missing):,}", f"{len(self._names):,}", missing[0],
            )  # fmt: skip


def _read_names(path: str) -> pa.Array:
    try:
        with open(path, "rb") as stream:
            data = stream.read(MAX_LIST + 1)
        if len(data) > MAX_LIST:
            raise ValueError(f"larger than {MAX_LIST >> 20} MiB; use a .npy file of uids")
        names = [line.strip() for line in data.decode().splitlines()]
    except (OSError, ValueError) as error:
        raise UserError(f"--uids {path}: {reason(error)}") from error
    return pa.array(dict.fromkeys(name for name in names if name), pa.string())


def _mask(values: pa.ChunkedArray) -> np.ndarray:
    found: np.ndarray = pc.fill_null(values, False).to_numpy(zero_copy_only=False).astype(bool)
    return found


def _options(settings: SelectSettings) -> str:
    given = {WHERE: settings.where, "--uids": settings.uids}
    return ", ".join(f"{name} {value}" for name, value in given.items() if value) or "--limit"


def growing(shards: Sequence[Shard], first: int = 1) -> Iterator[list[Shard]]:
    """Yield the shards in groups of doubling size, from `first` up to AT_ONCE."""
    start, size = 0, first
    while start < len(shards):
        yield list(shards[start : start + size])
        start, size = start + size, min(2 * size, AT_ONCE)

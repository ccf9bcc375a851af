"""What a work directory holds for recipes and reports: sources, scores, columns, subsets."""

from collections.abc import Sequence
from dataclasses import dataclass

from capmix.errors import UserError
from capmix.mix.columns import Column, columns_of
from capmix.pool import Pool
from capmix.settings.base import did_you_mean
from capmix.storage.layout import (
    ANNOTATIONS,
    CAPTIONS,
    RAW,
    SAMPLES,
    SCORES,
    SUBSETS,
    annotation_folder,
    scores_folder,
)
from capmix.storage.rows import STATUS_FIELDS
from capmix.storage.store import Store


@dataclass(frozen=True)
class Catalog:
    """A pool and its work directory, read anew at each call."""

    pool: Pool
    store: Store

    def sources(self) -> list[str]:
        """raw, and every source that has captions."""
        return [RAW, *self.store.folders(CAPTIONS)]

    def known_sources(self, wanted: Sequence[str] | None) -> list[str]:
        """`wanted` (default: all) in the order of sources(). Raises UserError for others."""
        have = self.sources()
        for source in wanted or ():
            if source not in have:
                hint = did_you_mean(source, have)
                raise UserError(
                    f"no captions of source {source!r} here, only {', '.join(have)}{hint}"
                )
        return [source for source in have if wanted is None or source in wanted]

    def subsets(self) -> list[str]:
        """Names of the subsets, sorted."""
        return [part.partition("/")[2] for part in self.store.parts(SUBSETS)]

    def scored(self, scorer: str) -> list[str]:
        """The sources that `scorer` has scored."""
        found = self.store.folders(scores_folder(scorer, "").rstrip("/"))
        return [source for source in self.sources() if source in found]

    def scorer(self, wanted: str | None) -> str | None:
        """`wanted`, or the one scorer that has scores; None where there are no scores.

        Raises UserError where there are several to choose from, or not the wanted one.
        """
        found = self.store.folders(SCORES)
        if wanted in found or (wanted is None and len(found) < 2):
            return wanted or next(iter(found), None)
        have = ", ".join(found) or "none"
        hint = did_you_mean(wanted, found) if wanted else ""
        raise UserError(
            f"--scorer: expected one that has scores in {self.store.root} ({have}){hint}"
        )

    def columns(self, scorer: str | None) -> dict[str, Column]:
        """Every column of recipes; `scorer` is the one whose scores are called S_score."""
        scored = {name: self.scored(name) for name in self.store.folders(SCORES)}
        name = None if scorer is None and len(scored) > 1 else self.scorer(scorer)
        folders = self.store.folders(ANNOTATIONS)
        annotations = {one: self._fields(annotation_folder(one)) for one in folders}
        of_pool = [field for field in self._fields(SAMPLES) if field != "text"]
        return columns_of(self.sources(), scored, name, annotations, of_pool)

    def _fields(self, folder: str) -> list[str]:
        """The columns of a folder of parts beside the status, as the first one that is not of
        failed rows alone has them."""
        known = {field for field, _ in STATUS_FIELDS}
        for shard in self.pool.shards:
            marker = self.store.read_marker(f"{folder}/{shard.name}")
            if marker is not None and marker.counts.ok:
                with self.store.open_table(f"{folder}/{shard.name}.parquet") as file:
                    return [name for name in file.schema_arrow.names if name not in known]
        return []

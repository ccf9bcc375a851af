"""The contents of a work directory that recipes and reports use: sources, scores, columns,
subsets."""

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

from capmix.errors import UserError
from capmix.mix.columns import FIELD, Column, columns_of, scored_sources, with_fields
from capmix.mix.expression import LIST_COLUMN
from capmix.mix.kinds import OF_INDEX, field_types
from capmix.models.fields import types_of
from capmix.pool import Pool
from capmix.pool.sample import Sample
from capmix.score.settings import ScoreSettings
from capmix.settings.base import did_you_mean
from capmix.storage.layout import (
    ANNOTATIONS,
    CAPTIONS,
    FIELDS,
    RAW,
    SAMPLES,
    SCORES,
    SUBSETS,
    annotation_folder,
    scores_folder,
)
from capmix.storage.marker import Marker
from capmix.storage.names import MASKED, no_captions
from capmix.storage.rows import STATUS_FIELDS
from capmix.storage.store import Store

log = logging.getLogger(__name__)
NO_COLUMNS = ("uid", "key", "shard", "draw")
FIRST_SAMPLES = 20  # of a shard, searched for a field


@dataclass(frozen=True)
class Catalog:
    """A pool and its work directory; every call reads its current state."""

    pool: Pool
    store: Store
    _said: set[str] = field(default_factory=set, repr=False, compare=False)

    def sources(self) -> list[str]:
        """Return raw and every source that has captions."""
        return [RAW, *self.store.folders(CAPTIONS)]

    def known_sources(self, wanted: Sequence[str] | None) -> list[str]:
        """Return `wanted` (default: all) in the order of sources(). Raises UserError for unknown
        sources."""
        have = self.sources()
        for source in wanted or ():
            if source not in have:
                raise UserError(no_captions(source, have))
        return [source for source in have if wanted is None or source in wanted]

    def subsets(self) -> list[str]:
        """Return the names of the subsets, sorted."""
        return [part.partition("/")[2] for part in self.store.parts(SUBSETS)]

    def scored(self, scorer: str) -> list[str]:
        """Return the sources that `scorer` has scored."""
        found = self.store.folders(scores_folder(scorer, "").rstrip("/"))
        return [source for source in self.sources() if source in found]

    def scorer(self, wanted: str | None) -> str | None:
        """Return `wanted` or the default scorer; None if there are no scores.

        The default is the only scorer with scores, or the only one that capmix ran if the scores of
        all others were imported. Raises UserError if several remain, or if `wanted` has no scores.
        """
        found = self.store.folders(SCORES)
        if wanted and wanted not in found:  # it may be the model or the model's short name
            named = ScoreSettings(model=wanted).name
            wanted = named if named in found else wanted
        if wanted in found or (wanted is None and len(found) < 2):
            return wanted or next(iter(found), None)
        if wanted is None and (computed := self._only_computed(found)):
            return self._log_choice(computed, found)
        if not found:
            named = f"--scorer {wanted}: " if wanted else ""
            raise UserError(f"{named}no scores in {self.store.root}: run `capmix score`")
        have = ", ".join(found)
        if wanted is None:
            raise UserError(
                f"several scorers have scores in {self.store.root} ({have}): choose one with "
                "--scorer"
            )
        raise UserError(
            f"--scorer {wanted}: no scores in {self.store.root}; scorers: {have}"
            f"{did_you_mean(wanted, found)}"
        )

    def columns(
        self, scorer: str | None, names: Collection[str] | None = None
    ) -> dict[str, Column]:
        """Return every column that recipes can use, by name.

        S_score is the score by `scorer`. `names` are the columns that a recipe needs (see
        plan.names_of). If `scorer` is None and there are several scorers, S_score is by the only
        one that has scored all sources whose scores are among `names`; of several such scorers, by
        the only one that capmix ran. If this leaves no scorer, there is no S_score. A field that
        only some shards have is included only if it is among `names`.
        """
        scored = {name: self.scored(name) for name in self.store.folders(SCORES)}
        if scorer is None and len(scored) > 1:
            chosen = self._scorer_of(scored, names or ())
        else:
            chosen = self.scorer(scorer)
        folders = self.store.folders(ANNOTATIONS)
        annotations = {one: self._fields(annotation_folder(one)) for one in folders}
        of_pool = [name for name in self._fields(SAMPLES) if name != "text"]
        found = columns_of(self.sources(), scored, chosen, annotations, of_pool)
        if not self.pool.has_images:
            own = {f"{FIELD}{one}": Column(SAMPLES, one) for one in of_pool}
            return found | {name: one for name, one in own.items() if one.field not in OF_INDEX}
        first = with_fields(found, types_of(self._first_marker(FIELDS)))
        if _may_be_fields(names or (), first):
            return with_fields(found, self.fields())
        return first

    def fields(self) -> dict[str, str]:
        """Return the SQL type of every field of the samples' JSON in the shards whose fields are
        indexed."""
        return field_types(self.store, self.pool)

    def lacks_fields(self, names: Collection[str], columns: Mapping[str, Column]) -> bool:
        """Return whether one of `names` may be a field of the samples' JSON and the fields of some
        shard are not indexed, because an older capmix indexed it.

        A name that is neither in `columns` nor in the first samples of such a shard is not a field,
        unless it begins with "field.".
        """
        if not self.pool.has_images:
            return False
        asked = _may_be_fields(names, columns)
        if not asked:
            return False
        with self.store.listed([FIELDS]):
            parts = ((shard, f"{FIELDS}/{shard.name}") for shard in self.pool.shards)
            lacking = [shard for shard, part in parts if not self.store.fingerprint(part)]
        with self.store.listed([SAMPLES]):  # shards that are indexed later get their fields then
            lacking = [one for one in lacking if self.store.fingerprint(f"{SAMPLES}/{one.name}")]
        if not lacking:
            return False
        if any(one in columns or one.startswith(FIELD) for one in asked):
            return True
        samples = islice(self.pool.read(lacking[0]), FIRST_SAMPLES)
        seen = {name for one in samples if isinstance(one, Sample) for name in one.metadata}
        return not seen.isdisjoint(asked)

    def _scorer_of(self, scored: Mapping[str, Sequence[str]], names: Collection[str]) -> str | None:
        asked = scored_sources(names, self.sources())
        covering = [one for one, of_one in scored.items() if asked and asked <= set(of_one)]
        found = covering[0] if len(covering) == 1 else self._only_computed(covering, asked)
        return found and self._log_choice(found, scored)

    def _only_computed(
        self, scorers: Collection[str], sources: Collection[str] | None = None
    ) -> str | None:
        """Return the only one of `scorers` of whole images whose scores were not imported for any
        of `sources` (default: all that it has scored); None if there are none or several."""
        whole = [one for one in scorers if not one.endswith(MASKED)]
        computed = [one for one in whole if not self._is_imported(one, sources)]
        return computed[0] if len(computed) == 1 else None

    def _is_imported(self, scorer: str, sources: Collection[str] | None) -> bool:
        of_scorer = self.scored(scorer)
        folders = [
            scores_folder(scorer, one) for one in of_scorer if sources is None or one in sources
        ]
        markers = map(self._first_marker, folders)
        return any(marker is not None and "import" in marker.config for marker in markers)

    def _log_choice(self, scorer: str, others: Collection[str]) -> str:
        """Return the chosen scorer, and log the choice once."""
        rest = ", ".join(sorted(set(others) - {scorer}))
        line = f"using the scores of {scorer}; to use {rest}, pass --scorer"
        if line not in self._said:
            log.info("%s", line)
        self._said.add(line)
        return scorer

    def _first_marker(self, folder: str) -> Marker | None:
        shards = self.pool.shards
        return self.store.read_marker(f"{folder}/{shards[0].name}") if shards else None

    def _fields(self, folder: str) -> list[str]:
        """Return the columns of a folder's parts, without the status columns. They are read from
        the first part in which a sample did not fail."""
        known = {field for field, _ in STATUS_FIELDS}
        for shard in self.pool.shards:
            marker = self.store.read_marker(f"{folder}/{shard.name}")
            if marker is not None and marker.counts.ok:
                with self.store.open_table(f"{folder}/{shard.name}.parquet") as file:
                    return [name for name in file.schema_arrow.names if name not in known]
        return []


def _may_be_fields(names: Collection[str], columns: Mapping[str, Column]) -> set[str]:
    """Return those of `names` that are fields or could be: neither columns nor built-in names."""
    return {
        name
        for name in names
        if (columns[name].folder == FIELDS if name in columns else not _is_other(name, columns))
    }


def _is_other(name: str, columns: Mapping[str, Column]) -> bool:
    is_source = f"{name}_text" in columns  # in a text template, a source stands for its text
    return is_source or name in NO_COLUMNS or name.startswith(LIST_COLUMN.format(""))

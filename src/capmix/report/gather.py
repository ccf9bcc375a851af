"""Read the contents of a work directory for the report."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from capmix.caption.fields import BY_PEOPLE
from capmix.errors import UserError
from capmix.measure import coverage, references, sampled
from capmix.measure.population import PART as POPULATION
from capmix.measure.population import Population, measure_population
from capmix.measure.settings import MeasureSettings
from capmix.measure.subset_topics import (
    MeasuredTopics,
    TopicCoverage,
    UnmeasuredSourceError,
)
from capmix.mix.catalog import Catalog
from capmix.mix.columns import Column
from capmix.mix.mix import Summary
from capmix.mix.subset import SubsetRows
from capmix.pool import Pool
from capmix.probe.evaluate import ProbeResult, load_result
from capmix.report.compare import is_control_name
from capmix.report.outcomes import (
    RecipeOutcome,
    average_name,
    averages_by_seed,
    comparable,
    of_runs,
    read_cells,
    read_summary,
)
from capmix.report.published import scale_of_runs
from capmix.report.wording import listed
from capmix.settings.counted import counted
from capmix.storage.layout import (
    ANNOTATIONS,
    CAPTIONS,
    EMBEDDINGS,
    PROBE_RESULTS,
    PROBES,
    SAMPLES,
    SCORES,
    SUBSETS,
    captions_folder,
)
from capmix.storage.marker import Marker
from capmix.storage.store import Store


@dataclass(frozen=True)
class FoundSubset:
    """A subset, and the recipe as it was applied."""

    name: str
    summary: Summary
    recipe: dict[str, Any]

    @property
    def fraction(self) -> float:
        """Kept rows divided by samples: the paper's fraction of the pool."""
        return self.summary.kept / self.summary.rows_in if self.summary.rows_in else 0.0

    @property
    def given(self) -> float:
        """The fraction parameter of its recipe; without one, the fraction of rows kept."""
        given = self.recipe.get("parameters", {}).get("fraction")
        return self.fraction if given is None else float(given)

    @property
    def strategy(self) -> str:
        """The name without the fraction parameter."""
        fraction = self.recipe.get("parameters", {}).get("fraction")
        percent = "" if fraction is None else f"{float(fraction) * 100:g}"
        before, found, after = self.name.rpartition(percent) if percent else ("", "", self.name)
        return before + after if found else self.name

    @property
    def sources(self) -> list[str]:
        """The sources of its clauses, in order."""
        return list(dict.fromkeys(str(clause["source"]) for clause in self.recipe["clauses"]))

    @property
    def is_control(self) -> bool:
        """Whether it is a control: its texts are shuffled, or its name says so."""
        return bool(self.recipe["shuffle"]) or is_control_name(self.name)

    @property
    def only_source(self) -> str | None:
        """The source, if the subset is all texts of a single source, unchanged."""
        clauses = self.recipe["clauses"]
        whole = {"where": "true", "weight": "1", "source": clauses[0]["source"]}
        plain = clauses == [whole] and not self.recipe["shuffle"] and not self.recipe["distinct"]
        return str(clauses[0]["source"]) if plain else None


@dataclass(frozen=True)
class Found:
    """The data of the report, except images and texts of samples.

    `by_seed` are the averages of trained runs in percent, by recipe and seed; `scale` is the scale
    of all runs.
    """

    catalog: Catalog
    scorer: str | None
    sources: list[str]
    scored: list[str]
    subsets: dict[str, FoundSubset]
    population: dict[str, Any]
    sampled: dict[str, Any] | None
    references: dict[str, Any] | None
    coverage: dict[str, Any] | None
    texts_map: pa.Table | None
    probes: dict[str, list[ProbeResult]]
    runs: list[RecipeOutcome]
    conservation: list[dict[str, Any]]
    settings: dict[str, dict[str, Any]]
    notes: list[str]
    by_seed: dict[str, dict[int, float]] = field(default_factory=dict)
    scale: str | None = None
    topics: dict[str, TopicCoverage] = field(default_factory=dict)

    def columns(self) -> dict[str, Column]:
        """Return the columns for reading the samples' rows."""
        asked = Population(
            self.store, self.pool, self.scorer, self.sources, self.scored, MeasureSettings()
        )
        return asked.columns()

    def is_of_people(self, source: str) -> bool:
        """Return whether the texts were written by hand in capmix view (see view/parts.py)."""
        return self.settings.get(captions_folder(source), {}).get("model") == BY_PEOPLE

    @property
    def store(self) -> Store:
        return self.catalog.store

    @property
    def pool(self) -> Pool:
        return self.catalog.pool


def gather(
    catalog: Catalog,
    scorer: str | None,
    recipes: Sequence[str] | None,
    results: str | None = None,
) -> Found:
    """Read the work directory.

    `recipes` names the subsets to show, in order (default: all); `results` is the directory of a
    grid whose runs are shown (default: the work directory). Measures that need a single pass over
    the texts are computed now if they are missing. Raises UserError for unknown subsets, and if
    `results` has no results.
    """
    store = catalog.store
    sources, scored = catalog.sources(), catalog.scored(scorer) if scorer else []
    population = _population(catalog, scorer, sources, scored)
    present = _Present(store, population, sources, [])
    subsets = present.subsets(recipes)
    sampled_marker = present.measured(sampled.PART, "nouns, languages and openings")
    mapped = present.measured(coverage.PART, "topics and map")
    table = store.read_table(f"{coverage.PART}.parquet") if mapped else None
    pool_name, grid = store.root.rpartition("/")[2], Store(results) if results else store
    rows = read_summary(grid, pool_name)
    if results and not rows:
        raise UserError(
            f"--results {results}: no results/summary.parquet; expected the work directory of a "
            "`capmix run` with training"
        )
    rows = comparable(rows, present.notes)
    return Found(
        catalog,
        scorer,
        sources,
        scored,
        subsets,
        population,
        sampled_marker,
        present.measured(references.PART, "reference metrics"),
        mapped,
        table,
        present.probes(subsets),
        of_runs(rows),
        _conservation(store),
        _settings(store),
        present.notes,
        averages_by_seed(read_cells(grid, pool_name), average_name(rows)) if rows else {},
        scale_of_runs(store, {str(row["recipe"]) for row in rows}) if rows else None,
        _topics(store, subsets) if mapped else {},
    )


def _topics(store: Store, subsets: Iterable[str]) -> dict[str, TopicCoverage]:
    """Return the topics that each subset covers; none if capmix 0.1 measured the topics.

    Subsets with a source that was not measured are left out.
    """
    marker = store.read_marker(coverage.PART)
    if marker is None or coverage.TOPICS not in marker.files:
        return {}
    topics = MeasuredTopics.read(store)
    found = {}
    for name in subsets:
        with contextlib.suppress(UnmeasuredSourceError):
            found[name] = topics.of(SubsetRows.pinned(store, name))
    return found


@dataclass
class _Present:
    """Read outputs computed from the current texts and scores, and note outdated ones."""

    store: Store
    population: dict[str, Any]
    sources: Sequence[str]
    notes: list[str]

    def measured(self, part: str, what: str) -> dict[str, Any] | None:
        marker = self.store.read_marker(part)
        if marker is None:
            return None
        if not self._is_current(marker):
            self.notes.append(
                f"The {what} are left out: texts or scores have changed since they were "
                "measured. Rerun `capmix measure`."
            )
            return None
        return _in_order(marker.extra, self.sources) if "sources" in marker.extra else marker.extra

    def subsets(self, wanted: Sequence[str] | None) -> dict[str, FoundSubset]:
        """Return the current subsets. Raises UserError for an unknown name in `wanted`."""
        found = {}
        for part in self.store.parts(SUBSETS):
            marker, name = self.store.read_marker(part), part.partition("/")[2]
            if marker is None or (wanted is not None and name not in wanted):
                continue
            if self._is_current(marker):
                summary = Summary(**marker.extra["summary"])
                found[name] = FoundSubset(name, summary, marker.config["recipe"])
            else:
                self.notes.append(
                    f"The subset {name} is left out: texts or scores have changed since it was "
                    "mixed. Rerun `capmix mix`."
                )
        known = {part.partition("/")[2] for part in self.store.parts(SUBSETS)}
        for name in wanted or ():
            if name not in known:
                raise UserError(f"no subset {name!r}; found {', '.join(sorted(known)) or 'none'}")
        return {name: found[name] for name in wanted or found if name in found}

    def probes(self, subsets: Iterable[str]) -> dict[str, list[ProbeResult]]:
        """Return the results of probes trained on the current subsets.

        Only probes of the same towers, evaluated on the same sets, are comparable: the group with
        most subsets is kept, then the one with most results, then the first.
        """
        groups: dict[tuple[tuple[str, str], ...], dict[str, list[ProbeResult]]] = {}
        for name in subsets:
            for part, evalsets in self._evaluated(name):
                of_sets = groups.setdefault(tuple(sorted(evalsets.items())), {})
                of_sets.setdefault(name, []).append(load_result(self.store, part))
        kept = max(
            groups,
            key=lambda one: (len(groups[one]), sum(map(len, groups[one].values()))),
            default=(),
        )
        for sets, found in groups.items():
            if sets != kept:
                self.notes.append(_left_out(sets, kept, found))
        return groups.get(kept, {})

    def _evaluated(self, subset: str) -> Iterator[tuple[str, dict[str, str]]]:
        """Yield result parts of a current subset's probes, with digests of evaluation sets.

        Probes of other than the embedded towers have the name of their towers below "".
        """
        now = self.store.fingerprint(f"{SUBSETS}/{subset}")
        for part in self.store.parts(f"{PROBE_RESULTS}/{subset}"):
            probe = f"{PROBES}/{part.partition('/')[2]}"
            trained, marker = self.store.read_marker(probe), self.store.read_marker(part)
            if trained is None or marker is None or trained.inputs["subset"] != now:
                continue
            if marker.inputs["checkpoint"] == self.store.fingerprint(probe):
                towers = part.removeprefix(f"{PROBE_RESULTS}/{subset}/").rpartition("/")[0]
                yield part, marker.config.get("evalsets", {}) | ({"": towers} if towers else {})

    def _is_current(self, marker: Marker) -> bool:
        """Return whether its input folders are unchanged and its sample is the same."""
        now: dict[str, str] = self.population["digests"]
        same = all(now.get(name, digest) == digest for name, digest in marker.inputs.items())
        drawn = {name: marker.config.get(name) for name in ("sample", "seed")}
        is_sampled = "sample" in marker.config
        return same and (not is_sampled or drawn == self.population["drawn"])


def _left_out(
    sets: tuple[tuple[str, str], ...],
    kept: tuple[tuple[str, str], ...],
    found: Mapping[str, Sequence[ProbeResult]],
) -> str:
    """Return the note about probes that cannot be compared with the kept ones."""
    probes = f"{counted(sum(map(len, found.values())), 'probe')} of {listed(list(found))}"
    towers, others = (dict(one).get("", "the embedded towers") for one in (sets, kept))
    if towers != others:
        return (
            f"Left out: {probes}, trained on {towers}; the others on {others}. To compare them, "
            "run `capmix probe` with the same --embeddings and --text."
        )
    names, kept_names = ([name for name, _ in one if name] for one in (sets, kept))
    on = listed(names) if names != kept_names else f"different files of {listed(names)}"
    return (
        f"Left out: {probes}, evaluated on {on}; the others on {listed(kept_names)}. To compare "
        "them, run `capmix probe` with the same --evalsets."
    )


def _population(
    catalog: Catalog, scorer: str | None, sources: Sequence[str], scored: Sequence[str]
) -> dict[str, Any]:
    """Measure the population, with the settings of the previous measurement if there is one."""
    marker = catalog.store.read_marker(POPULATION)
    names = ("sketch", "sample", "seed")
    known = {name: marker.config[name] for name in names} if marker else {}
    settings = MeasureSettings(**known)
    asked = Population(catalog.store, catalog.pool, scorer, sources, scored, settings)
    drawn = {"sample": settings.sample, "seed": settings.seed}
    return _in_order(measure_population(asked), sources) | {"drawn": drawn}


def _in_order(measures: dict[str, Any], sources: Sequence[str]) -> dict[str, Any]:
    """Order measures by source with raw first; markers sort their keys."""
    of_source = measures["sources"]
    return measures | {"sources": {name: of_source[name] for name in sources if name in of_source}}


def _conservation(store: Store) -> list[dict[str, Any]]:
    """Return rows in, ok, dropped and failed of every stage folder, summed over its parts."""
    rows: dict[str, dict[str, Any]] = {}
    for top in (SAMPLES, EMBEDDINGS, CAPTIONS, SCORES, ANNOTATIONS, SUBSETS):
        with store.listed([top]):
            markers = {part: store.read_marker(part) for part in store.parts(top)}
        for part, marker in markers.items():
            if marker is None:
                continue
            folder = part if top == SUBSETS else part.rpartition("/")[0]
            row = rows.setdefault(
                folder, {"stage": folder, "in": 0, "ok": 0, "dropped": {}, "failed": {}}
            )
            row["in"] += marker.rows_in
            row["ok"] += marker.counts.ok
            for kind in ("dropped", "failed"):
                for reason, count in getattr(marker.counts, kind).items():
                    row[kind][reason] = row[kind].get(reason, 0) + count
    return list(rows.values())


def _settings(store: Store) -> dict[str, dict[str, Any]]:
    """Return the settings of each captioner and scorer, from the first marker of each folder."""
    found: dict[str, dict[str, Any]] = {}
    for top in (CAPTIONS, SCORES):
        for part in store.parts(top):
            folder = part.rpartition("/")[0]
            if folder not in found:
                marker = store.read_marker(part)
                if marker is not None:
                    found[folder] = marker.config
    return found

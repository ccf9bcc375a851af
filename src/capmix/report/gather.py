"""Collect what a work directory holds for the report."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from capmix.measure import coverage, references, sampled
from capmix.measure.population import PART as POPULATION
from capmix.measure.population import Population, measure_population
from capmix.measure.settings import MeasureSettings
from capmix.mix.columns import Column
from capmix.mix.mix import FOLDER as SUBSETS
from capmix.mix.mix import Summary
from capmix.probe.evaluate import FOLDER as RESULTS
from capmix.probe.evaluate import Result, load_result
from capmix.report.outcomes import Outcome, of_runs, read_summary
from capmix.store import Store
from capmix.work import Work


@dataclass(frozen=True)
class Subset:
    """A subset, and the recipe as it was applied."""

    name: str
    summary: Summary
    recipe: dict[str, Any]

    @property
    def fraction(self) -> float:
        """Rows kept over samples, the paper's fraction of the pool."""
        return self.summary.kept / self.summary.rows_in if self.summary.rows_in else 0.0

    @property
    def strategy(self) -> str:
        """The name without the fraction that was asked for."""
        fraction = self.recipe.get("parameters", {}).get("fraction")
        percent = "" if fraction is None else f"{float(fraction) * 100:g}"
        return self.name.replace(percent, "", 1) if percent else self.name

    @property
    def only_source(self) -> str | None:
        """The source of a subset that takes every text of one source, as it stands."""
        clauses = self.recipe["clauses"]
        plain = len(clauses) == 1 and clauses[0]["where"] == "true" and not self.recipe["shuffle"]
        return str(clauses[0]["source"]) if plain else None


@dataclass(frozen=True)
class Found:
    """Everything that the report shows, apart from images and texts of samples."""

    work: Work
    scorer: str | None
    sources: list[str]
    scored: list[str]
    subsets: dict[str, Subset]
    population: dict[str, Any]
    sampled: dict[str, Any] | None
    references: dict[str, Any] | None
    coverage: dict[str, Any] | None
    texts_map: pa.Table | None
    probes: dict[str, list[Result]]
    runs: list[Outcome]
    conservation: list[dict[str, Any]]
    settings: dict[str, dict[str, Any]]

    def columns(self) -> dict[str, Column]:
        """What the samples' rows are read with."""
        asked = Population(
            self.store, self.work.pool, self.scorer, self.sources, self.scored, MeasureSettings()
        )
        return asked.columns()

    @property
    def store(self) -> Store:
        return self.work.store


def gather(
    work: Work, scorer: str | None, recipes: Sequence[str] | None, results: str | None = None
) -> Found:
    """Read the work directory. `recipes` names the subsets to show, in order (default: all);
    `results` is the directory of a grid whose runs are shown (default: the work directory).

    What `capmix measure` counts in one pass is counted now unless it is there.
    """
    store = work.store
    sources, scored = work.sources(), work.scored(scorer) if scorer else []
    population = _population(work, scorer, sources, scored)
    subsets = _subsets(store)
    names = list(subsets) if recipes is None else [name for name in recipes if name in subsets]
    probes: dict[str, list[Result]] = {}
    for part in store.parts(RESULTS):
        name = part.split("/")[1]
        if name in names:
            probes.setdefault(name, []).append(load_result(store, part))
    mapped = _if_of_now(store, coverage.PART, sources)
    table = store.read_table(f"{coverage.PART}.parquet") if mapped else None
    rows = read_summary(Store(results) if results else store, store.root.rpartition("/")[2])
    return Found(
        work,
        scorer,
        sources,
        scored,
        {name: subsets[name] for name in names},
        population,
        _if_of_now(store, sampled.PART, sources),
        _if_of_now(store, references.PART, sources, of_population=False),
        mapped,
        table,
        {name: probes[name] for name in names if name in probes},
        of_runs(rows),
        _conservation(store),
        _settings(store),
    )


def _population(
    work: Work, scorer: str | None, sources: Sequence[str], scored: Sequence[str]
) -> dict[str, Any]:
    """With the settings that it was measured with before, if it was."""
    marker = work.store.read_marker(POPULATION)
    names = ("sketch", "sample", "seed")
    known = {name: marker.config[name] for name in names} if marker else {}
    settings = MeasureSettings(**known)
    asked = Population(work.store, work.pool, scorer, sources, scored, settings)
    return _in_order(measure_population(asked), sources)


def _in_order(measures: dict[str, Any], sources: Sequence[str]) -> dict[str, Any]:
    """Markers sort their keys; here raw comes first."""
    of_source = measures["sources"]
    return measures | {"sources": {name: of_source[name] for name in sources if name in of_source}}


def _if_of_now(
    store: Store, part: str, sources: Sequence[str], of_population: bool = True
) -> dict[str, Any] | None:
    """What a part of the measures found, unless the pool's texts were measured again since."""
    marker = store.read_marker(part)
    if marker is None:
        return None
    if of_population and store.fingerprint(POPULATION) not in marker.inputs.values():
        return None
    return _in_order(marker.extra, sources) if "sources" in marker.extra else marker.extra


def _subsets(store: Store) -> dict[str, Subset]:
    found = {}
    for part in store.parts(SUBSETS):
        marker = store.read_marker(part)
        if marker is not None:
            name = part.partition("/")[2]
            summary = Summary(**marker.extra["summary"])
            found[name] = Subset(name, summary, marker.config["recipe"])
    return found


def _conservation(store: Store) -> list[dict[str, Any]]:
    """Rows in, ok, dropped and failed of every stage folder, summed over its parts."""
    rows: dict[str, dict[str, Any]] = {}
    for top in ("samples", "embeddings", "captions", "scores", "subsets"):
        for part in store.parts(top):
            marker = store.read_marker(part)
            if marker is None:
                continue
            folder = part if top == "subsets" else part.rpartition("/")[0]
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
    """The settings of each captioner and scorer, from the first marker of each folder."""
    found: dict[str, dict[str, Any]] = {}
    for top in ("captions", "scores"):
        for part in store.parts(top):
            folder = part.rpartition("/")[0]
            if folder not in found:
                marker = store.read_marker(part)
                if marker is not None:
                    found[folder] = marker.config
    return found

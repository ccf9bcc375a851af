"""Collect what a work directory holds for the report."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from capmix.measure.measure import FOLDER as MEASURES
from capmix.mix.mix import FOLDER as SUBSETS
from capmix.mix.mix import Summary
from capmix.pool import Pool
from capmix.probe.evaluate import FOLDER as RESULTS
from capmix.probe.evaluate import Result, load_result
from capmix.store import Store


@dataclass(frozen=True)
class Found:
    """Everything that the report shows, apart from images."""

    store: Store
    pool: Pool
    scorer: str
    sources: list[str]
    summaries: dict[str, Summary]
    measures: dict[str, dict[str, Any]]
    results: dict[str, list[Result]]
    conservation: list[dict[str, Any]]
    settings: dict[str, str]


def gather(
    store: Store, pool: Pool, scorer: str, sources: Sequence[str], recipes: Sequence[str] | None
) -> Found:
    """Read the work directory. `recipes` names the subsets to show, in order (default: all)."""
    summaries: dict[str, Summary] = {}
    for part in store.parts(SUBSETS):
        marker = store.read_marker(part)
        if marker is not None:
            summaries[part.partition("/")[2]] = Summary(**marker.extra["summary"])
    names = list(summaries) if recipes is None else [n for n in recipes if n in summaries]
    results: dict[str, list[Result]] = {}
    for part in store.parts(RESULTS):
        name = part.split("/")[1]
        results.setdefault(name, []).append(load_result(store, part))
    measured = store.read_marker(f"{MEASURES}/measures")
    return Found(
        store,
        pool,
        scorer,
        list(sources),
        {name: summaries[name] for name in names},
        measured.extra["measures"] if measured else {},
        {name: results[name] for name in names if name in results},
        _conservation(store),
        _settings(store),
    )


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


def _settings(store: Store) -> dict[str, str]:
    """The settings of each captioner and scorer, from the first marker of each folder."""
    found: dict[str, str] = {}
    for top in ("captions", "scores"):
        for part in store.parts(top):
            folder = part.rpartition("/")[0]
            marker = store.read_marker(part)
            if folder not in found and marker is not None:
                found[folder] = json.dumps(marker.config, sort_keys=True)
    return found

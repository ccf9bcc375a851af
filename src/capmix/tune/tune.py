"""Choose a recipe's parameters with probes, within a budget, and report on rows not used to choose.

Every candidate is a subset, mixed as by `capmix mix`. Probes of candidates are evaluated on the dev
side; each round keeps the better half (halving.py). The best of the last round, and the baselines,
are then evaluated on the held-out side.
"""

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from capmix.errors import UserError
from capmix.mix.recipe import load_recipe
from capmix.probe.evaluate import ProbeResult
from capmix.probe.run import probe_subset
from capmix.probe.towers import Towers
from capmix.report.compare import MeanEstimate, RecipeResult, compare
from capmix.settings.counted import counted
from capmix.storage.layout import RAW, TUNES
from capmix.storage.store import Store
from capmix.tune.halving import most_candidates, round_sizes
from capmix.tune.results import TuneRow, Tuning, write_tuning
from capmix.tune.settings import TuneSettings
from capmix.tune.space import Space, candidates, defaults_in
from capmix.tune.split import DEV, HELD_OUT, Sides

log = logging.getLogger(__name__)
Mix = Callable[[str, Mapping[str, Any], str], int]  # recipe, parameters, subset -> rows
Results = dict[str, list[ProbeResult]]
Prober = Callable[[str, Sequence[int], str], list[ProbeResult]]  # subset, seeds, side


@dataclass(frozen=True)
class Candidate:
    """A recipe with parameters, and the name of its subset; `rows` is None before it is mixed."""

    subset: str
    recipe: str
    parameters: Mapping[str, Any]
    rows: int | None = None
    reason: str = ""


def plan(recipe: str, space: Space, settings: TuneSettings) -> tuple[list[Candidate], Candidate]:
    """Return the candidates, and the one with the recipe's default parameters.

    Raises UserError for an unknown parameter, an invalid value, a name that two subsets would have,
    or a budget that is too small.
    """
    rounds = len(settings.seeds)
    count = most_candidates(settings.budget, rounds, 1 if recipe == RAW else 2)
    drawn = candidates(space, count, settings.seed)
    if len(drawn) < 2:
        raise UserError("tune: one candidate; pass several values of a parameter, or LOW..HIGH")
    known = load_recipe(recipe).parameters
    default = defaults_in(space, known)
    named = _named(recipe, [*drawn, default])
    return named[: len(drawn)], named[-1]


def tune(
    store: Store,
    name: str,
    recipe: str,
    space: Space,
    settings: TuneSettings,
    towers: Towers,
    sides: Sides,
    mix: Mix,
) -> Tuning:
    """Run the search and write `tunes/<name>.parquet`.

    `mix` writes a subset and returns its number of rows. Rerunning with the same arguments keeps
    all finished probes and returns the same result. Raises UserError if a baseline cannot be mixed,
    or no candidate can.
    """
    drawn, default = plan(recipe, space, settings)
    baselines = [Candidate(RAW, RAW, {}), *([] if recipe == RAW else [default])]
    baselines = [_mixed(one, mix) for one in baselines]

    def prober(subset: str, seeds: Sequence[int], side: str) -> list[ProbeResult]:
        folder = f"{TUNES}/{name}/{side}"
        return probe_subset(store, subset, seeds, sides.of(side), towers, settings, folder)

    tried = [_tried(one, mix) for one in drawn]
    usable = [one for one in tried if one.rows is not None]
    if not usable:
        raise UserError(f"tune: no candidate could be mixed: {tried[0].reason}")
    dev = _search(usable, settings.seeds, prober)
    finalists = {one: found for one, found in dev.items() if len(found) == len(settings.seeds)}
    best = _ranked(finalists, {one.subset: one.rows or 0 for one in usable})[0]
    all_dev = dev | {one.subset: prober(one.subset, settings.seeds, DEV) for one in baselines}
    reported = dict.fromkeys([*(one.subset for one in baselines), best])
    held = {one: prober(one, settings.seeds, HELD_OUT) for one in reported}
    of_dev, of_held = _by_name(all_dev), _by_name(held)
    rows = [
        _row(one, "baseline", of_dev, of_held, False)
        for one in baselines
        if one.subset not in {two.subset for two in tried}
    ]
    rows += [_row(one, "candidate", of_dev, of_held, one.subset == best) for one in tried]
    against = {one.subset: _against(held, best, one.subset) for one in baselines}
    probes = sum(map(len, all_dev.values()))
    found = Tuning(name, rows, best, against, probes, settings.budget, sides.count(DEV),
                   sides.count(HELD_OUT))  # fmt: skip
    results = [one for side in (all_dev, held) for runs in side.values() for one in runs]
    inputs = {one.part: store.fingerprint(one.part) for one in results}
    places = {"evalsets", "held_out", "tokenizer", "device"}
    config = {"recipe": recipe, **settings.model_dump(mode="json", exclude=places)}
    config["candidates"] = {one.subset: one.reason for one in tried}
    write_tuning(store, found, inputs, config)
    return found


def _named(recipe: str, parameters: Sequence[Mapping[str, Any]]) -> list[Candidate]:
    """Name the subsets as `capmix mix` does, plus a hash of parameters that the name lacks."""
    names = [load_recipe(recipe, dict(one)).name for one in parameters]
    by_text = {
        json.dumps(one, sort_keys=True): name for one, name in zip(parameters, names, strict=True)
    }
    repeated = {name for name, count in Counter(by_text.values()).items() if count > 1}
    found = []
    for one, name in zip(parameters, names, strict=True):
        text = json.dumps(one, sort_keys=True)
        suffix = f"-{hashlib.sha256(text.encode()).hexdigest()[:6]}" if name in repeated else ""
        found.append(Candidate(name + suffix, recipe, one))
    return found


def _mixed(one: Candidate, mix: Mix) -> Candidate:
    return replace(one, rows=mix(one.recipe, one.parameters, one.subset))


def _tried(one: Candidate, mix: Mix) -> Candidate:
    """Mix a candidate; one that selects nothing is recorded with the reason."""
    try:
        return _mixed(one, mix)
    except UserError as error:
        log.warning("tune: %s is left out: %s", one.subset, error)
        return replace(one, reason=str(error))


def _search(usable: Sequence[Candidate], seeds: Sequence[int], prober: Prober) -> Results:
    """Return the results on the dev side: one per seed of the rounds that a candidate reached."""
    found: Results = {one.subset: [] for one in usable}
    rows = {one.subset: one.rows or 0 for one in usable}
    standing = list(found)
    for number, size in enumerate(round_sizes(len(usable), len(seeds))):
        standing = standing[:size]
        for subset in standing:
            found[subset] += prober(subset, [seeds[number]], DEV)
        standing = _ranked({one: found[one] for one in standing}, rows)
        log.info("tune: round %d, %s", number + 1, counted(len(standing), "candidate"))
    return found


def _ranked(results: Results, rows: Mapping[str, int]) -> list[str]:
    """Return the subsets, best first; of equal ones, the one with more rows."""
    means = _by_name(results)
    return sorted(results, key=lambda one: (-means[one].average.mean, -rows[one]))


def _by_name(results: Results) -> dict[str, RecipeResult]:
    return {row.name: row for row in compare(results, baseline="")}


def _against(held: Results, best: str, baseline: str) -> MeanEstimate | None:
    """Return the difference of the chosen one from a baseline on the held-out side."""
    rows = {row.name: row for row in compare(held, baseline)}
    return rows[best].against_baseline


def _row(
    one: Candidate,
    role: str,
    dev: Mapping[str, RecipeResult],
    held: Mapping[str, RecipeResult],
    chosen: bool,
) -> TuneRow:
    of_dev, of_held = dev.get(one.subset), held.get(one.subset)
    return TuneRow(
        one.subset,
        role,
        dict(one.parameters),
        one.rows,
        of_dev.seeds if of_dev else 0,
        of_dev.average if of_dev else None,
        of_held.average if of_held else None,
        chosen,
        one.reason,
    )

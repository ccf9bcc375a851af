"""Summarize the results in one sentence that the intervals support."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from capmix.report.compare import RecipeResult, is_control_name
from capmix.report.differences import Difference, Differences, of_probes, of_runs
from capmix.report.figure import Mark
from capmix.report.gather import Found
from capmix.report.outcomes import RecipeOutcome
from capmix.report.outcomes import of_probes as of_outcomes
from capmix.report.wording import change_text, interval_text, listed
from capmix.settings.counted import counted
from capmix.storage.layout import RAW

Clause = str | None


@dataclass(frozen=True)
class Headline:
    """The summary of the results.

    `text` is the main result, `more` are further results, and `about` describes the comparison.
    `marks` compare each recipe with the highest.
    """

    text: str
    more: Sequence[str] = ()
    about: str = ""
    marks: Mapping[str, Mark] = field(default_factory=dict)


@dataclass(frozen=True)
class _Results:
    """Candidates (recipes that are not controls, highest first), controls and differences."""

    candidates: Sequence[RecipeOutcome]
    controls: Sequence[RecipeOutcome]
    differences: Differences
    baseline: str | None

    @property
    def best(self) -> RecipeOutcome:
        return self.candidates[0]

    @property
    def ties(self) -> list[str]:
        if not self.differences.tested:
            return []
        others = [one.subset for one in self.candidates[1:]]
        return [name for name in others if not self.differences.of(self.best.subset, name).is_clear]


def headline(
    found: Found, rows: Sequence[RecipeResult], outcomes: Sequence[RecipeOutcome], baseline: str
) -> Headline | None:
    """Return the summary, or None if only controls have results."""
    known = [one for one in outcomes if not is_control(found, one.subset)]
    if not known:
        return None
    differences = differences_of(found, rows, outcomes)
    results = _Results(
        sorted(known, key=lambda one: -differences.mean(one.subset)),
        [one for one in outcomes if is_control(found, one.subset)],
        differences,
        baseline if baseline in differences.names and len(outcomes) > 1 else None,
    )
    clauses = [_against_baseline(results), _mixing(found, results)]
    more = [_highest(results), _best_mixing(found, results), *_controls(results)]
    return Headline(
        "; ".join(one for one in clauses if one),
        [one for one in more if one],
        _about(results),
        _marks(results),
    )


def headline_lines(found: Found, rows: Sequence[RecipeResult], baseline: str) -> list[str]:
    """Return the summary as lines for a terminal; an empty list without results."""
    summary = headline(found, rows, found.runs or of_outcomes(rows), baseline)
    return [summary.text + ".", *summary.more, summary.about] if summary else []


def is_control(found: Found, subset: str) -> bool:
    """Return whether a recipe is a control, because it shuffles texts or by its name."""
    known = found.subsets.get(subset)
    return known.is_control if known is not None else is_control_name(subset)


def differences_of(
    found: Found, rows: Sequence[RecipeResult], outcomes: Sequence[RecipeOutcome]
) -> Differences:
    """Return the differences of the trained runs, or without runs, of the probes."""
    if not found.runs:
        return of_probes(rows)
    known = {one.subset: found.by_seed.get(one.subset) for one in outcomes}
    seeds = {name: values for name, values in known.items() if values}
    if len(seeds) < len(known):
        seeds = {one.subset: {0: one.average} for one in outcomes}
    return of_runs(seeds)


def _against_baseline(results: _Results) -> str:
    best, differences = results.best.subset, results.differences
    others = [one.subset for one in results.candidates if one.subset != results.baseline]
    if len(results.candidates) == 1 and results.baseline in (None, best):
        return f"{best}: average {_average(results.best)}; no other recipe to compare it with"
    if results.baseline is None:
        of_all = counted(len(results.candidates), "recipe")
        return f"{best}: average {_average(results.best)}, the highest of {of_all}"
    if best == results.baseline:
        change = differences.of(others[0], best)
        clear = "" if change.is_clear or not differences.tested else ", not distinguishable"
        return f"No recipe is above {best}; the next is {others[0]}: {_points(change)}{clear}"
    against = {name: differences.of(name, results.baseline) for name in others}
    above = [name for name, one in against.items() if one.is_clear and one.mean > 0]
    if not differences.tested:
        return f"{best}: {_over(against[best], results.baseline)}; not tested"
    if not above:
        return (
            f"No recipe is clearly above {results.baseline}; the highest is {best}: "
            f"{_points(against[best])}"
        )
    return f"{above[0]}: {_over(against[above[0]], results.baseline)}"


def _mixing(found: Found, results: _Results) -> Clause:
    """Compare the highest mix with raw text with the highest recipe of only synthetic captions."""
    mixed, alone = _best_of_kinds(found, results)
    if mixed is None or alone is None or not results.differences.tested:
        return None
    change = results.differences.of(mixed, alone)
    if not change.is_clear:
        return "mixing is not distinguishable from synthetic alone"
    if change.mean > 0:
        return f"mixing: {_over(change, 'synthetic alone')}"
    return f"synthetic alone: {_over(results.differences.of(alone, mixed), 'mixing')}"


def _best_mixing(found: Found, results: _Results) -> Clause:
    mixed, alone = _best_of_kinds(found, results)
    if mixed is None or alone is None:
        return None
    change = results.differences.of(mixed, alone)
    return f"The highest mix is {mixed}: {_points(change)} compared with {alone}."


def _best_of_kinds(found: Found, results: _Results) -> tuple[str | None, str | None]:
    """Return the highest mix of raw text and synthetic captions, and the highest without raw text.

    Recipes with manually written texts are neither.
    """
    mixed, alone = None, None
    for one in results.candidates:
        subset = found.subsets.get(one.subset)
        sources = set(subset.sources if subset is not None else [])
        synthetic = sources - {RAW}
        if not synthetic or any(map(found.is_of_people, synthetic)):
            continue
        if RAW in sources:
            mixed = mixed or one.subset
        else:
            alone = alone or one.subset
    return mixed, alone


def _highest(results: _Results) -> Clause:
    if len(results.candidates) == 1:
        return None
    best = f"{results.best.subset} is highest, {_average(results.best)}"
    if not results.differences.tested:
        return f"{best}."
    if not results.ties:
        return f"{best}; every other recipe is lower."
    return f"{best}; not distinguishable from it: {listed(results.ties)}."


def _controls(results: _Results) -> list[str]:
    controls = [one for one in results.controls if not one.subset.startswith("oracle")]
    if not controls or not results.differences.tested:
        return []
    best = results.best.subset
    unclear = [
        one.subset
        for one in controls
        if not results.differences.of(best, one.subset).is_clear
        or one.average > results.best.average
    ]
    if unclear:
        return [f"Check this first: {best} is not clearly above {listed(unclear)}."]
    values = listed([f"{one.subset} {one.average:.1f}%" for one in controls])
    return [f"All controls are lower: {values}."]


def _about(results: _Results) -> str:
    every = [*results.candidates, *results.controls]
    seeds = sorted({one.seeds for one in every})
    of_seeds = counted(seeds[-1], "seed")
    if len(seeds) > 1:
        of_seeds = f"{seeds[0]} to {of_seeds}"
    kind = "trained runs" if results.best.of == "runs" else "probes"
    each = "" if len(every) == 1 else " each"
    text = f"{counted(len(every), 'recipe')}, {of_seeds}{each} ({kind})."
    if len(every) == 1:
        return text
    if not results.differences.tested:
        return f"{text} Differences are not tested: {results.differences.about}."
    pairs = len(every) * (len(every) - 1) // 2
    single, corrected = ", for each pair separately", f", corrected for all {pairs:,} pairs"
    if pairs == 1:
        single = corrected = ""
    biased = (
        " The highest of several means is biased upward." if len(results.candidates) > 2 else ""
    )
    return (
        f"{text} In brackets: {results.differences.about}{single}. “Over” and “lower” are "
        f"significant at 5%{corrected}. “Not distinguishable” means not significant.{biased}"
    )


def _marks(results: _Results) -> dict[str, Mark]:
    if len(results.candidates) == 1:
        return {}
    marks: dict[str, Mark] = {one.subset: "lower" for one in results.candidates}
    if not results.differences.tested:
        marks = dict.fromkeys(marks, "")
    marks |= dict.fromkeys(results.ties, "tie")
    return marks | {results.best.subset: "best"}


def _average(one: RecipeOutcome) -> str:
    if one.of == "probes":
        return f"{one.average:.1f}% {interval_text(one.low, one.high)}"
    spread = f" ± {one.high - one.average:.1f}" if one.seeds > 1 else ""
    return f"{one.average:.1f}{spread}%"


def _points(change: Difference) -> str:
    words = change_text(change.mean, change.low, change.high)
    number, _, interval = words.partition(" ")
    return f"{number} points {interval}".rstrip()


def _over(change: Difference, other: str) -> str:
    number, _, interval = change_text(change.mean, change.low, change.high).partition(" ")
    return f"{number} points over {other} {interval}".rstrip()

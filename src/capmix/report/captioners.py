"""The table of captioners: which caption metric predicts training results?"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

from capmix.evaluation.agreement import agreement
from capmix.report.gather import Found
from capmix.report.outcomes import RecipeOutcome
from capmix.storage.layout import captions_folder

FEWEST = 3  # sources for a rank correlation


@dataclass(frozen=True)
class CaptionerRow:
    """One source: settings, metrics, and the results of training on it alone, in percent."""

    source: str
    model: str
    temperature: float | None
    cider: float | None
    clip_score: float | None
    similarity: float | None
    trigrams: int
    nouns: int | None
    classes: float | None
    retrieval: float | None
    average: float | None


def captioners(found: Found, outcomes: Sequence[RecipeOutcome]) -> list[CaptionerRow]:
    """Return a row per source; the last three columns are from the subset with only this source."""
    alone = {subset.only_source: name for name, subset in found.subsets.items()}
    alone |= {n: n for n, subset in found.subsets.items() if subset.only_source == n}
    by_subset = {outcome.subset: outcome for outcome in outcomes}
    rows = []
    for source, measures in found.population["sources"].items():
        settings = found.settings.get(captions_folder(source), {})
        metrics = (found.references or {"sources": {}})["sources"].get(source, {})
        of_sample = (found.sampled or {"sources": {}})["sources"].get(source, {})
        outcome = by_subset.get(alone.get(source, ""))
        model = settings.get("model", "the pool" if source == "raw" else "imported")
        rows.append(
            CaptionerRow(
                source,
                "manual edits" if found.is_of_people(source) else str(model),
                settings.get("temperature"),
                metrics.get("CIDEr"),
                metrics.get("CLIPScore"),
                (measures["noise"] or {}).get("mean"),
                measures["unique_trigrams"],
                of_sample.get("nouns"),
                outcome.classes if outcome else None,
                outcome.retrieval if outcome else None,
                outcome.average if outcome else None,
            )
        )
    return rows


def rank_correlations(rows: Sequence[CaptionerRow]) -> list[tuple[str, str, float, int]]:
    """Return metric, result, Kendall's tau-b between them and the number of sources.

    Pairs that fewer than three sources have are left out. Raw text is one of the sources.
    """
    names = {field.name for field in fields(CaptionerRow)}
    found = []
    for metric in ("cider", "clip_score", "similarity", "trigrams", "nouns"):
        for result in ("classes", "retrieval", "average"):
            assert {metric, result} <= names
            pairs = [(getattr(row, metric), getattr(row, result)) for row in rows]
            known = [(a, b) for a, b in pairs if a is not None and b is not None]
            if len(known) >= FEWEST:
                tau = agreement(*zip(*known, strict=True))
                if tau == tau:  # not NaN
                    found.append((metric, result, tau, len(known)))
    return found

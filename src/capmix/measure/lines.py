"""Format measures as lines for the terminal."""

from typing import Any

from capmix.measure.coverage import AT_LEAST
from capmix.settings.counted import counted
from capmix.settings.tables import table_lines

LANGUAGES = 5  # of a source, to print


def measure_lines(found: dict[str, Any]) -> list[str]:
    """Return a table with a row per source, then agreement, reference metrics and topics."""
    population, sampled = found["population"], found["sampled"]
    lines = [
        f"{counted(population['samples'], 'sample')}; nouns, openings and topics are computed on "
        f"{population['sampled']:,} of them"
        + (f" ({sampled['tagger']})" if sampled["tagger"] else "")
    ]
    lines += table_lines(
        ["source", "texts", "unique", "words", "vocabulary", "trigrams", "distinct-3", "nouns",
         "noun share", "mean score", "truncated", "flagged"],
        [_row(name, one, sampled["sources"][name]) for name, one in population["sources"].items()],
    )  # fmt: skip
    lines += _language_lines(sampled["sources"])
    errors = [one.get("standard_error") for one in population["sources"].values()]
    if any(errors):
        lines.append(f"distinct counts are HyperLogLog estimates: ± {2 * errors[0]:.1%} (95%)")
    for pair in population["agreement"]:
        if pair["samples"]:
            lines.append(
                f"{pair['first']} scores higher than {pair['second']} on "
                f"{pair['first_higher']:.1%} of samples (mean difference "
                f"{pair['difference']:+.4f}); {pair['above_top']:.1%} of {pair['second']} texts "
                f"reach the score of the top 30% of {pair['first']}"
            )
    if found["references"]:
        metrics = ("CIDEr", "BLEU-4", "ROUGE-L", "METEOR", "CLIPScore", "RefCLIPScore")
        about = found["references"]
        lines.append(
            f"reference metrics on {counted(about['images'], 'image')}, "
            f"tokenization: {about['tokens']}"
        )
        rows = [
            [name, *(_number(one[metric], ".4f") for metric in metrics)]
            for name, one in about["sources"].items()
        ]
        lines += table_lines(["source", *metrics], rows)
    if found["coverage"]:
        effective = found["coverage"]["effective_topics"].items()
        topics = len(found["coverage"]["topics"])
        shown = ", ".join(f"{name} {value:.1f}" for name, value in effective)
        lines.append(f"effective number of {topics} topics: {shown}")
        covered = found["coverage"]["covered_topics"].items()
        shown = ", ".join(f"{name} {value}" for name, value in covered)
        lines.append(f"topics with at least {AT_LEAST} of the sampled texts: {shown}")
    return lines


def _language_lines(sources: dict[str, Any]) -> list[str]:
    """Return a line for each source: its most frequent languages, of the sampled texts."""
    lines = []
    for name, one in sources.items():
        if one["languages"]:
            first = one["languages"][:LANGUAGES]
            rest = len(one["languages"]) - len(first)
            shown = [f"{code or 'unknown'} {count / one['texts']:.1%}" for code, count in first]
            shown += [f"{rest} more"] if rest else []
            lines.append(f"languages of {name}: {', '.join(shown)}")
    return lines


def _row(name: str, population: dict[str, Any], sampled: dict[str, Any]) -> list[str]:
    noise = population["noise"] or {"mean": None}
    return [
        name,
        f"{population['texts']:,}",
        f"{population['unique_texts']:,}",
        f"{population['mean_words']:.1f}",
        f"{population['vocabulary']:,}",
        f"{population['unique_trigrams']:,}",
        f"{population['distinct_3']:.3f}",
        _number(sampled["nouns"], ","),
        _number(sampled.get("noun_share"), ".1%"),
        _number(noise["mean"], ".4f"),
        _number(population["truncated"], ","),
        f"{sum(population['flags'].values()):,}",
    ]


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)

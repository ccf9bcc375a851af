"""Options of `capmix measure`."""

from capmix.models.known import ScoreModel
from capmix.settings.base import Settings, option
from capmix.settings.values import Names

REFERENCES, TOPICS = "References", "Topics"


class MeasureSettings(Settings):
    """What is measured, on how many samples, and with which model."""

    scorer: str | None = option(
        None,
        "Scorer whose scores to measure (default: the only scorer, or the only one whose scores "
        "were not imported).",
    )
    sources: Names | None = option(
        None, "Sources to measure, comma-separated (default: all).", metavar="SOURCE,..."
    )
    sketch: bool = option(
        False, "Count distinct texts, words and n-grams with HyperLogLog, in fixed memory."
    )
    sample: int = option(20_000, "Number of random samples for nouns, topics and the report.", ge=1)
    seed: int = option(0, "Random seed.")
    references: str | None = option(
        None,
        "Compute CIDEr and other reference metrics against a COCO or NoCaps annotation file, or "
        "against the texts of a source (source:NAME).",
        group=REFERENCES,
        metavar="FILE",
    )
    java: bool = option(
        True,
        "Use pycocoevalcap's tokenizer and METEOR if Java is installed.",
        group=REFERENCES,
    )
    topics: int = option(20, "Number of topics (clusters of texts); 0 = none.", group=TOPICS, ge=0)
    map_points: int = option(1_000, "Texts per source on the map.", group=TOPICS, ge=10)
    model: ScoreModel = option(
        "",
        "Scorer whose text tower embeds texts for topics; values as in `capmix score` (default: "
        "no topics, except `mini` for the pool `embedded`).",
        group=TOPICS,
    )
    device: str = option("auto", "auto, cpu, cuda, cuda:1, ...", group=TOPICS)

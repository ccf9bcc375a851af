"""Options of `capmix measure`."""

from capmix.models.known import ScoreModel
from capmix.settings.base import Settings, option
from capmix.settings.values import Names

REFERENCES, TOPICS = "References", "Topics"


class MeasureSettings(Settings):
    """What is counted, on how many samples, and with which model."""

    scorer: str | None = option(
        None, "Whose scores to measure (default: the only scorer, or the only one not imported)."
    )
    sources: Names | None = option(
        None, "Sources to measure, comma-separated (default: all).", metavar="SOURCE,..."
    )
    sketch: bool = option(
        False, "Count distinct texts, words and n-grams with HyperLogLog, in fixed memory."
    )
    sample: int = option(
        20_000, "Samples for nouns, topics and the report, drawn by uid and seed.", ge=1
    )
    seed: int = option(0, "Random seed.")
    references: str | None = option(
        None,
        "COCO or NoCaps annotation file, or source:NAME: reports CIDEr and other reference "
        "metrics.",
        group=REFERENCES,
        metavar="FILE",
    )
    java: bool = option(
        True,
        "Use pycocoevalcap's tokenizer and METEOR where Java is installed.",
        group=REFERENCES,
    )
    topics: int = option(20, "Clusters of texts; 0 for none.", group=TOPICS, ge=0)
    map_points: int = option(1_000, "Texts of each source on the map.", group=TOPICS, ge=10)
    model: ScoreModel = option(
        "",
        "Scorer whose text tower finds topics, as in `capmix score` (default: no topics, but "
        "`mini` for the pool `embedded`).",
        group=TOPICS,
    )
    device: str = option("auto", "auto, cpu, cuda, cuda:1, ...", group=TOPICS)

"""Options of `capmix probe`, and those that it shares with `capmix tune`."""

from typing import Literal

from capmix.models.known import ScoreModel
from capmix.settings.base import Settings, option
from capmix.settings.values import Names, Numbers

TOWERS, SCHEDULE = "Towers", "Schedule"
MAX_ROWS = 100_000  # about 1 GB of features; the default schedule sees 25,600 rows


class TowerSettings(Settings):
    """What a probe is trained on: saved image vectors, a text side and a schedule."""

    embeddings: str | None = option(
        None,
        "Saved image embeddings to train on: a folder in embeddings/ (default: those of --model; "
        "without --model, `mini`, which are computed if they are missing).",
        group=TOWERS,
        metavar="NAME",
    )
    model: ScoreModel = option(
        "",
        "Scorer that computed the embeddings, as in `capmix score`; encodes the images of "
        "evaluation sets whose features are not stored yet.",
        group=TOWERS,
    )
    device: str = option("auto", "Device of --model: auto, cpu, cuda, ...", group=TOWERS)
    text: Literal["words", "transformer"] = option(
        "words",
        "Text side: words = a projection of the embedded model's mean of word vectors; "
        "transformer = a one-layer transformer trained from scratch.",
        group=TOWERS,
    )
    tokenizer: str | None = option(
        None,
        "tokenizer.json of the transformer (default: the embedded model's, WordPiece).",
        group=TOWERS,
        metavar="FILE",
    )
    context: int = option(
        32, "Tokens of a text that the transformer reads.", group=TOWERS, ge=8, le=128
    )
    width: int = option(
        128, "Width of the transformer; a multiple of 32.", group=TOWERS, ge=32, le=512
    )
    steps: int | None = option(
        None, "Training steps (default: words 100, transformer 1000).", group=SCHEDULE, ge=1
    )
    batch_size: int = option(256, "Samples per batch.", group=SCHEDULE, ge=2, le=65_536)
    max_rows: int = option(
        MAX_ROWS,
        "Rows to load of a larger subset: whole shards, in the same order for all subsets. "
        "1,000,000 rows of 512 dimensions need 3 GB of memory.",
        group=SCHEDULE,
        ge=1,
    )


class ProbeSettings(TowerSettings):
    """Which subsets to train probes on, with which seeds, and on which sets to evaluate them."""

    subsets: Names | None = option(
        None, "Subsets to probe, comma-separated (default: all).", metavar="SUBSET,..."
    )
    seeds: Numbers = option(
        lambda: [0, 1, 2, 3, 4],
        "Seeds, comma-separated; one probe per seed and subset (default: 0,1,2,3,4).",
        metavar="N,...",
        min_length=1,
    )
    evalsets: Names = option(
        lambda: ["embedded"],
        "Paths of evaluation sets, comma-separated (default: embedded).",
        metavar="PATH,...",
        min_length=1,
    )

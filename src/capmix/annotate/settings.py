"""Options of `capmix annotate` and `capmix import`."""

from typing import Literal

from capmix.models.known import ScoreModel
from capmix.settings.base import Settings, option

Method = Literal["clusters", "semdedup", "normsim", "cliploss", "text_area"]
# arXiv 2405.19547, section 3.1: t = 0.01 (CLIP's own), 10 random batches of 32,768.
TEMPERATURE, BATCH, ROUNDS = 0.01, 32_768, 10
SIDE = 640
CLUSTERS, SEMDEDUP, NORMSIM, CLIPLOSS = "clusters", "semdedup", "normsim", "cliploss"
TEXT_AREA = "text_area"


class AnnotateSettings(Settings):
    """Which columns to compute from saved embeddings. Each group of options is for one method."""

    method: Method = option(
        help="clusters: k-means, optionally with the clusters nearest to a reference set. "
        "semdedup: near duplicates within clusters. normsim: similarity to a reference set. "
        "cliploss: negCLIPLoss. text_area: the share of each image that text covers."
    )
    name: str | None = option(
        None,
        "Prefix of the columns in recipes: NAME_COLUMN (default: the method; text for text_area).",
    )
    embeddings: str | None = option(
        None, "Saved embeddings to use: a folder in embeddings/ (default: the only one)."
    )
    reference: str | None = option(
        None,
        "Reference set of clusters and normsim: a .npy file of vectors, or a work directory with "
        "embeddings.",
        metavar="FILE",
    )
    seed: int = option(0, "Random seed.")
    clusters: int | None = option(
        None, "Number of clusters (default: one per 256 samples).", group=CLUSTERS, ge=1
    )
    of: str = option("clusters", "Name of the clusters annotation.", group=SEMDEDUP)
    epsilon: float = option(
        0.05, "Samples with a similarity over 1 - epsilon are near duplicates.", group=SEMDEDUP
    )
    norm: Literal["inf", "2"] = option(
        "inf", "Norm of the similarities to the reference images.", group=NORMSIM
    )
    source: str = option("raw", "Source whose texts are compared with the images.", group=CLIPLOSS)
    model: ScoreModel = option(
        "",
        "Scorer that computed the embeddings, as in `capmix score` (default: `mini` for the pool "
        "`embedded`).",
        group=CLIPLOSS,
    )
    device: str = option("auto", "Device: auto, cpu, cuda, cuda:1, ...", group=CLIPLOSS)
    temperature: float = option(TEMPERATURE, "Softmax temperature.", group=CLIPLOSS, gt=0)
    batch: int = option(BATCH, "Pairs per random batch.", group=CLIPLOSS, ge=1)
    rounds: int = option(
        ROUNDS, "Number of random batches to average over per pair.", group=CLIPLOSS, ge=1
    )
    side: int = option(
        SIDE,
        "Reduce larger images to this side for the text detector, in pixels; smaller is faster, "
        "larger finds smaller text.",
        group=TEXT_AREA,
        ge=64,
        le=2048,
    )


class ImportSettings(Settings):
    """Which columns of CSV or parquet files to import, and under which names."""

    source: str = option(help="Source name of the imported captions or scores, such as blip2.")
    uid_column: str = option("uid", "Column with the samples' uids.")
    text_column: str = option("text", "Column with the captions.")
    column: str = option("score", "Column with the scores.")
    scorer: str = option("imported", "Scorer name of the imported scores.")

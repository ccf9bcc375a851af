"""Options of `capmix annotate` and `capmix import`."""

from typing import Literal

from capmix.models.known import ScoreModel
from capmix.settings.base import Settings, option

Method = Literal["clusters", "semdedup", "normsim", "cliploss"]
# arXiv 2405.19547, section 3.1: t = 0.01 (CLIP's own), 10 random batches of 32,768.
TEMPERATURE, BATCH, ROUNDS = 0.01, 32_768, 10
CLUSTERS, SEMDEDUP, NORMSIM, CLIPLOSS = "clusters", "semdedup", "normsim", "cliploss"


class AnnotateSettings(Settings):
    """Which columns are computed from saved embeddings; each group of options is of one method."""

    method: Method = option(
        help="clusters: k-means, and a reference set's clusters. semdedup: near duplicates within "
        "clusters. normsim: similarity to a reference set. cliploss: negCLIPLoss."
    )
    name: str | None = option(None, "Name of the columns in recipes (default: the method).")
    embeddings: str | None = option(
        None, "Which saved embeddings, a folder below embeddings/ (default: the only ones)."
    )
    reference: str | None = option(
        None,
        "clusters, normsim: a .npy file of vectors, or a work directory with embeddings.",
        metavar="FILE",
    )
    seed: int = option(0, "Random seed.")
    clusters: int | None = option(
        None, "Number of clusters (default: one per 256 samples).", group=CLUSTERS, ge=1
    )
    of: str = option("clusters", "Name of the clusters annotation.", group=SEMDEDUP)
    epsilon: float = option(
        0.05, "Samples closer than 1 - epsilon are near duplicates.", group=SEMDEDUP
    )
    norm: Literal["inf", "2"] = option("inf", "Norm of the similarities.", group=NORMSIM)
    source: str = option("raw", "Source whose texts are compared.", group=CLIPLOSS)
    model: ScoreModel = option(
        "",
        "Scorer that made the embeddings, as in `capmix score` (default: `mini` for the pool "
        "`embedded`).",
        group=CLIPLOSS,
    )
    device: str = option("auto", "auto, cpu, cuda, cuda:1, ...", group=CLIPLOSS)
    temperature: float = option(TEMPERATURE, "Softmax temperature.", group=CLIPLOSS, gt=0)
    batch: int = option(BATCH, "Pairs per random batch.", group=CLIPLOSS, ge=1)
    rounds: int = option(ROUNDS, "Random batches that each pair is averaged over.", group=CLIPLOSS,
                         ge=1)  # fmt: skip


class ImportSettings(Settings):
    """Which columns of CSV or parquet files are imported, and under which name."""

    source: str = option(help="Source of the imported captions or scores, such as blip2.")
    uid_column: str = option("uid", "Column of the samples' uids.")
    text_column: str = option("text", "Column of captions.")
    column: str = option("score", "Column of scores.")
    scorer: str = option("imported", "Name of the scorer.")

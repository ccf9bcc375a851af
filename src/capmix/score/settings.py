"""Scoring options, shared by the command line, pipeline files and Python."""

import re

from capmix.engine.settings import HARDWARE
from capmix.models import options
from capmix.models.images import Preprocess
from capmix.models.known import ScoreModel
from capmix.models.openvino_tower import Runtime
from capmix.models.options import MODEL, Precision
from capmix.models.trained_run import recorded_model
from capmix.settings.base import Settings, option
from capmix.settings.values import Names


class ScoreSettings(Settings):
    """Options for scoring texts."""

    sources: Names | None = option(
        None,
        "Sources to score, comma-separated (default: raw and all captions).",
        metavar="SOURCE,...",
    )
    model: ScoreModel = option(
        "",
        "Scorer: a short name such as clip-l14 (`capmix models` lists them); an open_clip model "
        "(ARCHITECTURE/TAG, local-dir:FOLDER or hf-hub:ID); `run:DIRECTORY` (a run of `capmix "
        "train`); `transformers:ID`; "
        "`package.module:Class` (your own); `mini` (the demo model, default only for the pool "
        "`embedded`).",
        group=MODEL,
    )
    save_embeddings: bool = option(
        False, "Save the image embeddings (float16) and reuse them for other sources.", group=MODEL
    )
    preprocess: Preprocess = option(
        "capmix",
        "Image decoding before the model's transform: capmix = apply EXIF rotation, make "
        "transparency white; open_clip = plain Image.open (only open_clip models).",
        group=MODEL,
    )
    mask: str | None = option(
        None,
        "Fill the text in images before scoring them, as scorer SCORER-masked: the name of an "
        "annotation by `capmix annotate --method text_area`, such as text.",
        group=MODEL,
        metavar="NAME",
    )
    dtype: Precision = options.DTYPE
    device: str = options.DEVICE
    runtime: Runtime = option(
        "torch",
        "Runtime of the image and text towers: torch, or openvino "
        "(faster on CPUs; requires `capmix[openvino]`).",
        group=HARDWARE,
    )
    exact_decode: bool = option(
        False,
        "Prepare images with the model's own processor, from all their pixels (default: faster; at "
        "most a few values of the input differ, mostly by 1 of 255, and large JPEGs are reduced).",
        group=HARDWARE,
    )
    batch_timeout: float = options.BATCH_TIMEOUT

    @property
    def name(self) -> str:
        """The scorer's folder in scores/: the model in lower case, with "-" as separator.

        The name of a training run does not contain the path.
        """
        return re.sub(r"[^a-z0-9.]+", "-", recorded_model(self.model).lower()).strip("-.")

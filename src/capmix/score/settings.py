"""Options of scoring: the same for the command line, a pipeline file and Python."""

import re
from typing import Literal

from capmix.engine.batches import BATCH_TIMEOUT
from capmix.engine.settings import HARDWARE, RESUME
from capmix.models.images import Preprocess
from capmix.models.known import ScoreModel
from capmix.settings.base import Settings, option
from capmix.settings.values import Names

MODEL = "Model"


class ScoreSettings(Settings):
    """Which texts are scored, and by which model."""

    sources: Names | None = option(
        None,
        "Sources to score, comma-separated (default: raw and all captions).",
        metavar="SOURCE,...",
    )
    model: ScoreModel = option(
        "",
        "Scorer: a short name such as clip-l14 (`capmix models` lists them); ARCHITECTURE/TAG, "
        "local-dir:FOLDER or hf-hub:ID of open_clip; `transformers:ID`; `package.module:Class` of "
        "your own; `mini`, the demo's (default for the pool `embedded` alone).",
        group=MODEL,
    )
    save_embeddings: bool = option(
        False, "Keep the image embeddings (float16) and score later sources from them.", group=MODEL
    )
    preprocess: Preprocess = option(
        "capmix",
        "Images for the model: capmix = EXIF rotation applied, transparency on white; open_clip = "
        "Image.open and the model's transform alone (models of open_clip).",
        group=MODEL,
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = option(
        "auto", "Precision; auto = bfloat16 on GPUs, float32 on CPUs.", group=HARDWARE
    )
    device: str = option("auto", "auto, cpu, cuda, cuda:1, ...", group=HARDWARE)
    exact_decode: bool = option(
        False,
        "Decode every pixel of JPEGs that are much larger than the model's input.",
        group=HARDWARE,
    )
    batch_timeout: float = option(
        BATCH_TIMEOUT,
        "Seconds a batch may take before its samples count as failed.",
        group=RESUME,
        gt=0,
    )

    @property
    def name(self) -> str:
        """What the scorer is called below scores/: the model in lower case, parted by "-"."""
        return re.sub(r"[^a-z0-9.]+", "-", self.model.lower()).strip("-.")

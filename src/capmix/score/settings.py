"""Every setting of a scorer: the same for the command line, a pipeline file and Python."""

import re
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from capmix.engine.batches import BATCH_TIMEOUT


class ScoreSettings(BaseModel):
    """`sources`: those whose texts are scored; by default raw and every captioned one.

    `model`: `mini`; `transformers:ID` for CLIP, SigLIP or SigLIP 2 of a hub id or folder; else an
    open_clip name, `ARCHITECTURE/TAG`, `local-dir:FOLDER` or `hf-hub:ID`. With `save_embeddings`
    the image vectors are kept as float16 and scores come from them, also those of later sources.
    `exact_decode` decodes every pixel of large JPEGs (see images.py). A batch that takes over
    `batch_timeout` seconds has failed.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = "mini"
    sources: list[str] | None = None
    save_embeddings: bool = False
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device: str = "auto"
    exact_decode: bool = False
    batch_timeout: float = Field(default=BATCH_TIMEOUT, gt=0)

    @property
    def name(self) -> str:
        """What the scorer is called below scores/: the model in lower case, parted by "-"."""
        return re.sub(r"[^a-z0-9.]+", "-", self.model.lower()).strip("-.")

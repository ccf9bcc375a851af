"""Every setting of a captioner: the same for the command line, a pipeline file and Python."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from capmix.engine.batches import BATCH_TIMEOUT


class CaptionSettings(BaseModel):
    """How one source is captioned. The defaults are the paper's (arXiv 2307.10350, section 3).

    `model`: `mini`; `field:NAME` for a field of the samples' json; `open_clip:ARCHITECTURE/TAG`;
    `server:URL` of an OpenAI-compatible server (asked by `concurrency` requests at once, each
    `timeout` seconds at most and tried again `retries` times; images go out as they are, unless
    larger than `max_side` pixels); otherwise a model of transformers,
    as a hub id or a local folder. Tokens are counted without
    the prompt and without the end token. `temperature` 0 takes the likeliest token.
    `language` (ISO 639-1) flags captions in another one. `exact_decode` decodes every pixel of
    large JPEGs (see images.py). `compile_decoder` gives a model of transformers a cache of fixed
    size, and on a GPU a compiled decoder: a minute at the start, less for each token. A batch that
    takes over `batch_timeout` seconds has failed.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = "mini"
    revision: str | None = None
    prompt: str | None = None
    top_k: int = Field(default=50, ge=1)
    temperature: float = Field(default=0.75, ge=0)
    min_tokens: int = Field(default=5, ge=0)
    max_tokens: int = Field(default=40, ge=1)
    captions_per_image: int = Field(default=1, ge=1)
    seed: int = 0
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device: str = "auto"
    batch_size: int | None = Field(default=None, ge=1)
    max_side: int | None = Field(default=None, ge=16)
    concurrency: int = Field(default=32, ge=1)
    timeout: float = Field(default=120.0, gt=0)
    retries: int = Field(default=5, ge=0)
    trust_remote_code: bool = False
    language: str | None = None
    exact_decode: bool = False
    compile_decoder: bool = False
    batch_timeout: float = Field(default=BATCH_TIMEOUT, gt=0)

    def sampling(self) -> dict[str, object]:
        """What decides how tokens are drawn; it goes into every marker."""
        names = ("top_k", "temperature", "min_tokens", "max_tokens", "captions_per_image", "seed")
        return {name: getattr(self, name) for name in names}

"""Options of captioning: the same for the command line, a pipeline file and Python."""

from typing import Literal

from capmix.engine.batches import BATCH_TIMEOUT
from capmix.engine.settings import HARDWARE, RESUME
from capmix.models.known import CaptionModel
from capmix.settings.base import Settings, option, option_info

MODEL, SAMPLING, SERVER = "Model", "Sampling", "Caption server"


class CaptionSettings(Settings):
    """How one source is captioned. The sampling defaults are those of the paper (arXiv 2307.10350,
    section 3). Tokens are counted without the prompt and without the end token."""

    model: CaptionModel = option(
        "",
        "Captioner: a short name such as blip2 (`capmix models` lists them); a transformers hub id "
        "or folder; `open_clip:ARCHITECTURE/TAG`; `server:URL` (OpenAI-compatible, ends in /v1); "
        "`field:NAME` of the samples' JSON; `package.module:Class` of your own; `mini`, the demo's "
        "(default for the pool `embedded` alone).",
        group=MODEL,
    )
    revision: str | None = option(None, "Hub revision: branch, tag or commit.", group=MODEL)
    prompt: str | None = option(
        None, "Prompt, for models that take one (default: by model).", group=MODEL
    )
    language: str | None = option(
        None,
        "Expected language (ISO 639-1, such as en); captions in other languages are flagged.",
        group=MODEL,
    )
    trust_remote_code: bool = option(
        False,
        "DANGER: runs Python code from the model's repository with your permissions.",
        group=MODEL,
    )
    top_k: int = option(50, "Sample from the K most likely tokens.", group=SAMPLING, ge=1)
    temperature: float = option(
        0.75, "Sampling temperature; 0 = greedy decoding.", group=SAMPLING, ge=0
    )
    min_tokens: int = option(5, "Minimum number of tokens.", group=SAMPLING, ge=0)
    max_tokens: int = option(40, "Maximum number of tokens.", group=SAMPLING, ge=1)
    captions_per_image: int = option(1, "Captions per image.", group=SAMPLING, ge=1)
    seed: int = option(0, "Random seed.", group=SAMPLING)
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = option(
        "auto", "Precision; auto = bfloat16 on GPUs, float32 on CPUs.", group=HARDWARE
    )
    device: str = option("auto", "auto, cpu, cuda, cuda:1, ...", group=HARDWARE)
    batch_size: int | None = option(
        None, "Images per batch (default: by device).", group=HARDWARE, ge=1
    )
    exact_decode: bool = option(
        False,
        "Decode every pixel of JPEGs that are much larger than the model's input.",
        group=HARDWARE,
    )
    compile_decoder: bool = option(
        False,
        "Compile the decoder on a GPU: about a minute at start-up, less time per token.",
        group=HARDWARE,
    )
    max_side: int | None = option(
        None,
        "Downscale images whose longer side exceeds N pixels before upload.",
        group=SERVER,
        metavar="N",
        ge=16,
    )
    concurrency: int = option(32, "Requests at the same time.", group=SERVER, ge=1)
    timeout: float = option(
        120.0,
        "Request timeout in seconds, from the connection to the last byte of the answer.",
        group=SERVER,
        gt=0,
    )
    retries: int = option(5, "Retries of a request to a busy server.", group=SERVER, ge=0)
    batch_timeout: float = option(
        BATCH_TIMEOUT,
        "Seconds a batch may take before its samples count as failed.",
        group=RESUME,
        gt=0,
    )

    def sampling(self) -> dict[str, object]:
        """What decides how tokens are drawn; it goes into every marker."""
        fields = type(self).model_fields.items()
        return {
            name: getattr(self, name)
            for name, field in fields
            if option_info(field).group == SAMPLING
        }

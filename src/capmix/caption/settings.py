"""Captioning options, shared by the command line, pipeline files and Python."""

from capmix.engine.settings import HARDWARE
from capmix.models import options
from capmix.models.known import CaptionModel
from capmix.models.openvino_tower import Runtime
from capmix.models.options import MODEL, SAMPLING, SERVER, Precision
from capmix.settings.base import Settings, option
from capmix.settings.values import CaptionPrompt


class CaptionSettings(Settings):
    """Options for captioning one source.

    The sampling defaults are the settings of the paper (arXiv 2307.10350, section 3). Token counts
    exclude the prompt and the end token.
    """

    model: CaptionModel = option(
        "",
        "Captioner: a short name such as blip2 (`capmix models` lists them); a transformers hub id "
        "or folder; `vllm:ID` (the same, run by vLLM); `open_clip:ARCHITECTURE/TAG`; "
        "`run:DIRECTORY` (a CoCa run of `capmix train`); "
        "`server:URL` (OpenAI-compatible, ends in /v1); "
        "`field:NAME` (a field of the samples' JSON); `package.module:Class` (your own); `mini` "
        "(the demo model, default only for the pool `embedded`).",
        group=MODEL,
    )
    revision: str | None = options.REVISION
    prompt: CaptionPrompt | None = option(
        None,
        "Prompt, for models that accept one (default: depends on the model). It can contain the "
        "sample's own texts: `Describe this image.[[ Its alt text: {raw:128}]]`. May be repeated: "
        "each prompt writes captions of its own.",
        group=MODEL,
        metavar="TEXT",
        repeats=True,
    )
    language: str | None = option(
        None,
        "Expected language (ISO 639-1, such as en); captions in other languages are flagged.",
        group=MODEL,
    )
    trust_remote_code: bool = options.TRUST_REMOTE_CODE
    top_k: int = options.TOP_K
    temperature: float = option(
        0.75, "Sampling temperature; 0 = greedy decoding.", group=SAMPLING, ge=0
    )
    min_tokens: int = option(5, "Minimum number of tokens.", group=SAMPLING, ge=0)
    max_tokens: int = option(40, "Maximum number of tokens.", group=SAMPLING, ge=1)
    captions_per_image: int = option(1, "Captions per image and prompt.", group=SAMPLING, ge=1)
    plain_sampling: bool = options.PLAIN_SAMPLING
    seed: int = options.SEED
    dtype: Precision = options.DTYPE
    device: str = options.DEVICE
    runtime: Runtime = option(
        "torch",
        "Runtime of the vision tower: torch, or openvino "
        "(faster on CPUs; only BLIP; requires `capmix[openvino]`).",
        group=HARDWARE,
    )
    batch_size: int | None = option(
        None, "Images per batch (default: depends on the device).", group=HARDWARE, ge=1
    )
    exact_decode: bool = option(
        False,
        "Prepare images with the model's own processor, from all their pixels (default: faster; at "
        "most a few values of the input differ, mostly by 1 of 255, and large JPEGs are reduced).",
        group=HARDWARE,
    )
    slots: int | None = option(
        None,
        "Captions under way at once, for models that support it (default: depends on the device; "
        "0 = batches of transformers' generate).",
        group=HARDWARE,
        metavar="N",
        ge=0,
    )
    compile_decoder: bool = option(
        False,
        "Compile the decoder on a GPU: about one minute at startup, then less time per token.",
        group=HARDWARE,
    )
    max_side: int | None = option(
        None,
        "Downscale images whose longer side exceeds N pixels before upload.",
        group=SERVER,
        metavar="N",
        ge=16,
    )
    concurrency: int = options.CONCURRENCY
    timeout: float = options.TIMEOUT
    retries: int = options.RETRIES
    batch_timeout: float = options.BATCH_TIMEOUT

    def sampling(self) -> dict[str, object]:
        """Return the sampling settings, which are written to every marker."""
        return options.sampling(self)

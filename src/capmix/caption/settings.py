"""Captioning options, shared by the command line, pipeline files and Python."""

from typing import Literal

from capmix.engine.batches import BATCH_TIMEOUT
from capmix.engine.settings import HARDWARE, RESUME
from capmix.models.known import CaptionModel
from capmix.models.openvino_tower import Runtime
from capmix.settings.base import Settings, option, option_info
from capmix.settings.values import CaptionPrompt

MODEL, SAMPLING, SERVER = "Model", "Sampling", "Caption server"


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
    revision: str | None = option(None, "Hub revision: branch, tag or commit.", group=MODEL)
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
    trust_remote_code: bool = option(
        False,
        "DANGER: run Python code from the model's repository with your permissions.",
        group=MODEL,
    )
    top_k: int = option(50, "Sample from the K most likely tokens.", group=SAMPLING, ge=1)
    temperature: float = option(
        0.75, "Sampling temperature; 0 = greedy decoding.", group=SAMPLING, ge=0
    )
    min_tokens: int = option(5, "Minimum number of tokens.", group=SAMPLING, ge=0)
    max_tokens: int = option(40, "Maximum number of tokens.", group=SAMPLING, ge=1)
    captions_per_image: int = option(1, "Captions per image and prompt.", group=SAMPLING, ge=1)
    plain_sampling: bool = option(
        False,
        "Ignore the repetition penalties and forced tokens of a model's generation config, as in "
        "the paper (transformers models).",
        group=SAMPLING,
    )
    seed: int = option(0, "Random seed.", group=SAMPLING)
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = option(
        "auto",
        "Precision; auto = bfloat16 on GPUs (float16 if not supported), float32 on CPUs.",
        group=HARDWARE,
    )
    device: str = option("auto", "Device: auto, cpu, cuda, cuda:1, ...", group=HARDWARE)
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
    concurrency: int = option(32, "Maximum number of concurrent requests.", group=SERVER, ge=1)
    timeout: float = option(
        120.0,
        "Request timeout in seconds, from connecting to the last byte of the response.",
        group=SERVER,
        gt=0,
    )
    retries: int = option(
        5, "Retries per request after timeouts and transient server errors.", group=SERVER, ge=0
    )
    batch_timeout: float = option(
        BATCH_TIMEOUT,
        "Timeout per batch in seconds; a slower batch is retried in halves, a slower sample fails.",
        group=RESUME,
        gt=0,
    )

    def sampling(self) -> dict[str, object]:
        """Return the sampling settings, which are written to every marker."""
        fields = type(self).model_fields.items()
        return {
            name: getattr(self, name)
            for name, field in fields
            if option_info(field).group == SAMPLING
        }

"""Rewriting options, shared by the command line, pipeline files and Python."""

from typing import Any, Literal, Self

from pydantic import ConfigDict, ModelWrapValidatorHandler, model_validator

from capmix.caption.settings import CaptionSettings
from capmix.engine.settings import HARDWARE
from capmix.errors import UserError
from capmix.models import options
from capmix.models.options import MODEL, SAMPLING, Precision
from capmix.prompts.presets import Preset, preset, preset_list
from capmix.settings.base import Settings, option
from capmix.settings.values import Names, Texts

TEXTS = "Texts"
SPLIT = "split"
SENTENCES = 8  # texts per image of `--model split`, unless given
RAW_ONLY = ["raw"]
# The options that a captioner's backend has too: its code draws tokens and calls servers.
OF_CAPTIONERS = (
    "revision", "trust_remote_code", "top_k", "temperature", "min_tokens", "max_tokens",
    "plain_sampling", "seed", "dtype", "device", "batch_size", "concurrency", "timeout", "retries",
    "batch_timeout",
)  # fmt: skip


class RewriteSettings(Settings):
    """Options for rewriting the texts of one or several sources into a new source.

    Token counts exclude the prompt and the end token.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    from_: Names = option(
        lambda: list(RAW_ONLY),
        "Sources of the input texts, comma-separated (default: raw).",
        group=TEXTS,
        metavar="SOURCE,...",
        alias="from",
        min_length=1,
    )
    model: str = option(
        ...,
        "Rewriter: a transformers hub id or folder, of a causal or chat model (Llama, Qwen) or a "
        "sequence-to-sequence model (T5, NLLB, M2M100, Marian); `vllm:ID` (a causal or chat model, "
        "run by vLLM); `server:URL` (OpenAI-compatible, "
        "such as `vllm serve`; ends in /v1); `split` (sentences, without a model); "
        "`package.module:Class` (your own).",
        group=MODEL,
    )
    revision: str | None = options.REVISION
    trust_remote_code: bool = options.TRUST_REMOTE_CODE
    preset: str | None = option(
        None,
        f"A prompt of capmix, with options that you can override ({preset_list()}).",
        group=TEXTS,
        metavar="NAME",
    )
    prompt: Texts | None = option(
        None,
        "Template of the prompt, such as `Rewrite: {raw:256}[[ The image shows: {blip2}.]]`; "
        "a [[part]] is left out if one of its texts is missing. May be repeated: each prompt "
        "writes texts of its own (default: the text itself, for models that are trained for one "
        "task).",
        group=TEXTS,
        metavar="TEMPLATE",
        repeats=True,
    )
    missing: Literal["skip", "pass", "drop"] = option(
        "skip",
        "For a sample without a text that the prompt needs (a preset needs all sources of --from): "
        "skip = write no row; pass = copy the first available text; drop = write a row with the "
        "reason.",
        group=TEXTS,
    )
    target: str | None = option(
        None,
        "Target language of a translation (ISO 639-1, such as en); texts that are already in it "
        "are copied unchanged.",
        group=TEXTS,
        metavar="LANGUAGE",
    )
    language: str | None = option(
        None,
        "Expected language (ISO 639-1, such as en); texts in other languages are flagged.",
        group=TEXTS,
    )
    max_input_tokens: int = option(
        512,
        "Truncate the input of models without a prompt to this number of tokens.",
        group=TEXTS,
        ge=1,
    )
    top_k: int = options.TOP_K
    temperature: float = option(
        0.0, "Sampling temperature; 0 = greedy decoding.", group=SAMPLING, ge=0
    )
    min_tokens: int = option(0, "Minimum number of tokens.", group=SAMPLING, ge=0)
    max_tokens: int = option(96, "Maximum number of tokens.", group=SAMPLING, ge=1)
    captions_per_image: int | None = option(
        None,
        f"Texts per image and prompt (default: 1; for split {SENTENCES}).",
        group=SAMPLING,
        ge=1,
    )
    plain_sampling: bool = options.PLAIN_SAMPLING
    seed: int = options.SEED
    dtype: Precision = options.DTYPE
    device: str = options.DEVICE
    batch_size: int | None = option(
        None, "Texts per batch (default: depends on the device).", group=HARDWARE, ge=1
    )
    concurrency: int = options.CONCURRENCY
    timeout: float = options.TIMEOUT
    retries: int = options.RETRIES
    batch_timeout: float = options.BATCH_TIMEOUT

    @model_validator(mode="wrap")
    @classmethod
    def _with_preset(cls, value: Any, make: ModelWrapValidatorHandler[Self]) -> Self:
        """Fill in the options of the preset that are not given; they do not count as set."""
        name = value.get("preset") if isinstance(value, dict) else None
        if not isinstance(name, str):
            return make(value)
        chosen = preset(name)
        if chosen.template is not None and value.get("prompt"):
            raise UserError(f"--preset {name}: it has a prompt; omit --preset or --prompt")
        made = make({**chosen.options, **value})
        made.model_fields_set.difference_update(chosen.options.keys() - value.keys())
        return made

    @property
    def chosen_preset(self) -> Preset | None:
        """The preset, if one is chosen."""
        return preset(self.preset) if self.preset else None

    @property
    def templates(self) -> tuple[str, ...]:
        """The templates of the prompts; none if the texts themselves are the inputs.

        Raises UserError if the preset needs another number of sources.
        """
        if self.prompt or self.chosen_preset is None:
            return tuple(self.prompt or ())
        found = self.chosen_preset.prompt(self.from_)
        return () if found is None else (found,)

    @property
    def each(self) -> int:
        """The number of texts per image and prompt."""
        return self.captions_per_image or (SENTENCES if self.model == SPLIT else 1)

    @property
    def number(self) -> int:
        """The number of texts per image."""
        return self.each * max(1, len(self.templates))

    def sampling(self) -> dict[str, object]:
        """Return the sampling settings, which are written to every marker."""
        return options.sampling(self) | {"captions_per_image": self.each}

    def as_captioning(self, model: str) -> CaptionSettings:
        """Return the same options for the code of a captioner's backend."""
        shared = {name: getattr(self, name) for name in OF_CAPTIONERS}
        return CaptionSettings(model=model, captions_per_image=self.each, **shared)

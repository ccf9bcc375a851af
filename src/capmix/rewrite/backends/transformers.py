"""Rewrite with text models of transformers: causal and chat models, T5, NLLB, M2M100, Marian.

As for captioners, the model's `generate` runs greedy decoding with one logits processor, which
draws each token as in caption/sampling.py. Therefore greedy decoding is exactly transformers', and
sampling does not depend on the batch.
"""

import copy
import hashlib
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from capmix.caption.backends.generation import generate, generation_rules, text_positions
from capmix.caption.captioner import Caption
from capmix.caption.sampling import caption_keys
from capmix.engine.batches import SampleError
from capmix.errors import UserError
from capmix.models.device import device_and_dtype, fingerprint, preparing_threads, provenance
from capmix.models.hub import check_hub
from capmix.models.transformers_loading import load_complete, loading
from capmix.prompts.escape import Escape, special_tokens
from capmix.prompts.truncation import by_tokens
from capmix.rewrite.languages import LanguageCodes, language_codes
from capmix.rewrite.rewriter import TextRequest
from capmix.rewrite.settings import RewriteSettings

PREFIX = "transformers:"


class TransformersRewriter:
    """A text model with its tokenizer. Loads only safetensors weights.

    Raises UserError if the model cannot be loaded, or if a translation model does not know the
    target language.
    """

    extra: ClassVar[str | None] = "transformers"
    packages: ClassVar[tuple[str, ...]] = ("torch", "transformers")
    device: ClassVar[str] = "gpu"

    def __init__(self, settings: RewriteSettings, source: str = ""):
        name = settings.model.removeprefix(PREFIX)
        self._settings, self._wanted = settings, settings.as_captioning(name)
        only_downloaded = self.check(settings)  # before torch is loaded, which takes seconds
        self._device, dtype = device_and_dtype(settings.device, settings.dtype)
        self.tokenizer, self.model = _load(settings, name, self._device, dtype, only_downloaded)
        self._encodes = bool(self.model.config.is_encoder_decoder)
        self.tokenizer.padding_side = "left"
        self._codes = language_codes(self.tokenizer)
        self.translates = self._codes is not None or self.model.config.model_type == "marian"
        self._rules = generation_rules(self.model, self.tokenizer, settings.plain_sampling)
        if self._codes is not None:
            self.model.generation_config.forced_bos_token_id = _target(settings, self._codes)
        self._template = getattr(self.tokenizer, "chat_template", None)
        self.special_tokens = special_tokens(self.tokenizer)
        self._escape = Escape(self.special_tokens)
        self.truncate = by_tokens(copy.deepcopy(self.tokenizer))
        positions = text_positions(self.model.config)
        own = 0 if self._encodes else settings.max_tokens  # a causal model's text follows its input
        self._room = None if positions is None else positions - own
        self._own = threading.local()
        self.batch_size = settings.batch_size or (32 if self._device == "cpu" else 256)
        self.workers = preparing_threads()
        weights = fingerprint(name)
        self.settings: dict[str, Any] = {
            # A local model is identified by its weights, not by its path.
            "model": Path(name).name if weights else settings.model,
            "revision": getattr(self.model.config, "_commit_hash", None) or settings.revision,
            "weights": weights,
            "dtype": str(dtype).removeprefix("torch."),
            **settings.sampling(),
            **({"generation": self._rules.logits} if self._rules.logits else {}),
            **input_marker(self._template, settings),
        }
        self.provenance = provenance(("torch", "transformers"), self._device, self.batch_size)

    @property
    def languages(self) -> frozenset[str] | None:
        """The languages (ISO 639-1) that a translation model reads; None if it has no codes."""
        return None if self._codes is None else self._codes.known

    @staticmethod
    def check(settings: RewriteSettings) -> bool:
        """Return whether to load only local files. Raises UserError if the model is unavailable."""
        model = settings.model.removeprefix(PREFIX)
        return check_hub(model, f"rewriter {model}", settings.revision)

    def prepare(self, request: TextRequest) -> list[tuple[int, ...]]:
        """Tokenize the inputs. Raises SampleError if one exceeds the model's context."""
        distinct = {text: self._tokens(text, request.language) for text in set(request.texts)}
        return [distinct[text] for text in request.texts]

    def rewrite(
        self, prepared: Sequence[list[tuple[int, ...]]], requests: Sequence[TextRequest]
    ) -> list[list[Caption]]:
        """Return K texts for each of N samples; encode equal inputs of a sample once."""
        found: list[list[Caption]] = [[] for _ in prepared]
        inputs: dict[str, Any] = {}
        before: list[tuple[int, ...]] = []
        for k in range(self._settings.number):
            ids = [one[k] for one in prepared]
            is_same, before = ids == before, ids
            if is_same and self._wanted.temperature == 0:
                texts = [of_sample[-1] for of_sample in found]
            else:
                inputs = inputs if is_same else self._inputs(ids)
                keys = caption_keys(
                    self._wanted.seed, [one.name for one in requests], requests[0].source, k
                )
                texts = generate(
                    self.model, self.tokenizer, inputs, keys.to(self._device), self._wanted,
                    self._rules,
                )  # fmt: skip
            for of_sample, text in zip(found, texts, strict=True):
                of_sample.append(text)
        return found

    def _tokens(self, text: str, language: str) -> tuple[int, ...]:
        is_chat = bool(self._template) and not self._encodes
        tokenizer = self._tokenizer(language)
        return input_tokens(tokenizer, text, self._settings, self._escape, is_chat, self._room)

    def _tokenizer(self, language: str) -> Any:
        """Return the thread's own tokenizer for a source language.

        Fast tokenizers are not thread-safe ("Already borrowed").
        """
        own: dict[str, Any] = self._own.__dict__
        if language not in own:
            own[language] = copy.deepcopy(self.tokenizer)
            if self._codes is not None and language:
                own[language].src_lang = self._codes.code(language)
        return own[language]

    def _inputs(self, ids: Sequence[Sequence[int]]) -> dict[str, Any]:
        """Return a batch on the device: padded on the left, or on the right for an encoder.

        An encoder runs here, once for all texts of the same inputs.
        """
        import torch

        longest = max(map(len, ids))
        fill = self.tokenizer.pad_token_id or 0
        rows = torch.full((len(ids), longest), fill, dtype=torch.int64)
        mask = torch.zeros_like(rows)
        for row, one in enumerate(ids):
            place = slice(0, len(one)) if self._encodes else slice(longest - len(one), longest)
            rows[row, place] = torch.tensor(one, dtype=torch.int64)
            mask[row, place] = 1
        inputs: dict[str, Any] = {
            "input_ids": rows.to(self._device), "attention_mask": mask.to(self._device)
        }  # fmt: skip
        if self._encodes and self._settings.number > 1:
            with torch.inference_mode():
                inputs["encoder_outputs"] = self.model.get_encoder()(**inputs)
        return inputs


def input_tokens(
    tokenizer: Any,
    text: str,
    settings: RewriteSettings,
    escape: Escape,
    is_chat: bool,
    room: int | None,
) -> tuple[int, ...]:
    """Return the tokens of one input: a prompt, or a text of the pool, which is escaped and cut.

    A text is cut to `max_input_tokens`, or to `room`. Raises SampleError if a prompt, or what
    surrounds a text, has more tokens than `room`.
    """
    longest = None if settings.templates else settings.max_input_tokens
    text = text if settings.templates else escape(text)
    while True:
        ids = _tokens(tokenizer, text, longest, is_chat)
        if room is None or len(ids) <= room:
            return tuple(ids)
        if longest is not None:
            longest = min(longest, len(ids)) - (len(ids) - room)
        if longest is None or longest < 1:
            problem = f"the prompt has {len(ids)} tokens; the model has room for {room}"
            raise SampleError("prompt_too_long", problem)


def _tokens(tokenizer: Any, text: str, longest: int | None, is_chat: bool) -> list[int]:
    """Return the tokens of a text, of which at most `longest` are its own."""
    if is_chat:
        cut = text if longest is None else by_tokens(tokenizer)(text, longest)
        ids = _chat_tokens(tokenizer, cut)
    else:
        limits: dict[str, Any] = {}
        if longest is not None:
            length = longest + int(tokenizer.num_special_tokens_to_add())
            limits = {"truncation": True, "max_length": length}
        ids = list(tokenizer(text, verbose=False, **limits)["input_ids"])
    return ids or [one for one in [tokenizer.bos_token_id] if one is not None]


def input_marker(chat_template: Any, settings: RewriteSettings) -> dict[str, Any]:
    """Return the settings of a source that are about its inputs."""
    return {
        **({"chat_template": _digest(str(chat_template))} if chat_template else {}),
        **({} if settings.templates else {"max_input_tokens": settings.max_input_tokens}),
    }


def _chat_tokens(tokenizer: Any, text: str) -> list[int]:
    """Return the tokens of a chat with one message of the user."""
    messages = [{"role": "user", "content": text}]
    shown = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=False, enable_thinking=False
    )
    return list(tokenizer(shown, add_special_tokens=False, verbose=False)["input_ids"])


def _load(
    settings: RewriteSettings, model: str, device: str, dtype: Any, only_downloaded: bool
) -> tuple[Any, Any]:
    from transformers import (
        AutoConfig,
        AutoModelForCausalLM,
        AutoModelForSeq2SeqLM,
        AutoTokenizer,
    )

    common = {"revision": settings.revision, "trust_remote_code": settings.trust_remote_code}
    common |= {"local_files_only": only_downloaded}
    what = f"rewriter {model}"
    expected = (
        ". Expected a hub id or a folder with config, tokenizer and safetensors weights of a "
        "causal or sequence-to-sequence text model, and a --device with enough memory."
    )
    with loading(what, expected):
        config = AutoConfig.from_pretrained(model, **common)
        kind = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        tokenizer = AutoTokenizer.from_pretrained(model, **common)
        loaded = load_complete(kind, model, what, common | {"dtype": dtype})
        loaded.to(device).eval()
    return tokenizer, loaded


def _target(settings: RewriteSettings, codes: LanguageCodes) -> int:
    """Return the token that begins a translation into the target language."""
    what = f"rewriter {settings.model}"
    if settings.target is None:
        raise UserError(f"{what}: a translation model; name the target language with --target")
    if settings.target not in codes.known:
        raise UserError(f"{what}: the model has no language {settings.target!r} (--target)")
    return codes.token(settings.target)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]

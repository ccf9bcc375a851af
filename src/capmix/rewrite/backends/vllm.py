"""Rewrite with vLLM inside the worker process: continuous batching, one request per text.

The engine is that of the captioner (caption/backends/vllm.py). The prompts are those of
transformers' causal and chat models (backends/transformers.py).
"""

import copy
import threading
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from capmix.caption.backends.generation import end_tokens
from capmix.caption.backends.vllm import (
    PREFIX,
    check_options,
    generation_config,
    model_folder,
    model_processor,
    output_caption,
    outputs,
    repetition_penalty,
    sampling_params,
    set_environment,
    start_engine,
    vllm_provenance,
)
from capmix.caption.backends.vllm_engine import Generation
from capmix.caption.captioner import Caption
from capmix.caption.sampling import caption_key
from capmix.models.device import device_and_dtype, fingerprint, preparing_threads
from capmix.prompts.escape import Escape, special_tokens
from capmix.prompts.truncation import by_tokens
from capmix.rewrite.backends.transformers import input_marker, input_tokens
from capmix.rewrite.rewriter import PREPARES_REQUESTS, TextRequest
from capmix.rewrite.settings import RewriteSettings

ROLE = "rewriter"
# Requests start when they are prepared, a window of batches ahead (stage.py): the time limit of a
# batch includes the wait for those before it.
BATCH = 64


class VllmRewriter:
    """A causal or chat model that vLLM supports. Loads only safetensors weights.

    Raises UserError if the model cannot be loaded.
    """

    extra: ClassVar[str | None] = "vllm"
    packages: ClassVar[tuple[str, ...]] = ("vllm", "transformers", "torch")
    device: ClassVar[str] = "gpu"
    prepares: ClassVar[str] = PREPARES_REQUESTS

    def __init__(self, settings: RewriteSettings, source: str = ""):
        model = settings.model.removeprefix(PREFIX)
        self._wanted, self._source = settings.as_captioning(model), source
        only_downloaded = self.check(settings)
        set_environment()
        folder = model_folder(self._wanted, only_downloaded, ROLE)
        self._device, dtype = device_and_dtype(settings.device, settings.dtype)
        precision = str(dtype).removeprefix("torch.")
        processor = model_processor(self._wanted, folder, ROLE)
        self.tokenizer = getattr(processor, "tokenizer", processor)
        self._engine = start_engine(
            self._wanted,
            folder,
            precision,
            self._device,
            ROLE,
            enable_prefix_caching=True,  # prompts begin with the same text of the template
        )
        weakref.finalize(self, self._engine.close)
        config = self._engine.engine.model_config
        self._texts, self._template = settings, getattr(self.tokenizer, "chat_template", None)
        self.special_tokens = special_tokens(self.tokenizer)
        self._escape = Escape(self.special_tokens)
        self.truncate = by_tokens(copy.deepcopy(self.tokenizer))
        self._room = int(config.max_model_len) - settings.max_tokens
        self._rendering = threading.Lock()
        generation = generation_config(folder)
        text = getattr(config.hf_config, "text_config", None)
        self._ends = end_tokens(generation, text, config.hf_config, self.tokenizer)
        self._penalty = repetition_penalty(generation, self._wanted, ROLE)
        self.batch_size = settings.batch_size or BATCH
        self.workers = preparing_threads()
        is_local = Path(model).is_dir()
        self.settings: dict[str, Any] = {
            # A local model is identified by its weights, not by its path.
            "model": Path(model).name if is_local else model,
            "revision": settings.revision if is_local else Path(folder).name,
            "weights": fingerprint(model),
            "dtype": precision,
            "engine": "vllm",
            **({"repetition_penalty": self._penalty} if self._penalty != 1.0 else {}),
            **settings.sampling(),
            **input_marker(self._template, settings),
        }
        self.provenance = vllm_provenance(self._device, self.batch_size)

    @staticmethod
    def check(settings: RewriteSettings) -> bool:
        """Return whether to load only local files. Raises UserError if the model is unavailable."""
        return check_options(settings.as_captioning(settings.model), ROLE)

    def prepare(self, request: TextRequest) -> Generation:
        """Tokenize the inputs of one sample, and start its requests.

        Raises SampleError if an input exceeds the model's context.
        """
        with self._rendering:  # fast tokenizers are not thread-safe
            rendered = {one: self._rendered_input(one) for one in set(request.texts)}
        seed, count = self._wanted.seed, len(request.texts)
        keys = [caption_key(seed, request.name, self._source, k) for k in range(count)]
        sampling = [sampling_params(self._wanted, k, self._ends, self._penalty) for k in keys]
        generation = Generation([rendered[one] for one in request.texts], sampling, _nothing)
        self._engine.submit(generation)
        return generation

    def rewrite(
        self, prepared: Sequence[Generation], requests: Sequence[TextRequest]
    ) -> list[list[Caption]]:
        """Return the texts that `prepare` requested. Requests that failed are repeated."""
        found = outputs(self._engine, prepared, self._wanted.batch_timeout)
        return [[output_caption(self.tokenizer, one, self._ends) for one in some] for some in found]

    def _rendered_input(self, text: str) -> Any:
        ids = input_tokens(
            self.tokenizer, text, self._texts, self._escape, bool(self._template), self._room
        )
        (rendered,) = self._engine.engine.renderer.render_cmpl([{"prompt_token_ids": list(ids)}])
        return rendered


def _nothing() -> None:
    """Release nothing: a text holds little memory."""

"""Caption with vLLM inside the worker process: continuous batching, one request per caption.

The model is `vllm:ID`, a Hub id or a folder. Each request has the seed of its caption, so sampling
does not depend on other requests. The logits may, in their last bits, as batches differ in shape.
"""

import contextlib
import gc
import hashlib
import logging
import os
import threading
import warnings
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from capmix.caption.backends.generation import end_tokens
from capmix.caption.backends.transformers import PROMPTS, SMALLEST_SIDE
from capmix.caption.backends.vllm_engine import EngineThread, Generation, tensor_bytes
from capmix.caption.captioner import Caption
from capmix.caption.prompts import caption_prompts
from capmix.caption.sampling import caption_key
from capmix.caption.settings import CaptionSettings
from capmix.engine.batches import BrokenDeviceError, SampleError
from capmix.engine.deadline import TimedOutError
from capmix.engine.memory import WeightedSemaphore
from capmix.errors import UserError
from capmix.models.device import (
    device_and_dtype,
    fingerprint,
    input_side,
    preparing_threads,
    provenance,
    shorter_side,
)
from capmix.models.hub import check_hub
from capmix.models.images import check_resized, decode_image, enlarged
from capmix.models.known import CHAT_PROMPT
from capmix.pool import Sample
from capmix.prompts.escape import Escape, special_tokens
from capmix.prompts.truncation import by_tokens

log = logging.getLogger(__name__)

PREFIX, CAPTIONER = "vllm:", "captioner"
# Read by vLLM when it is imported. A worker is a daemonic process, which cannot start the process
# that vLLM would run its engine in.
FORCED = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_ALLOW_INSECURE_SERIALIZATION": "0",
}
# vLLM logs each failed step with all of its requests; its errors are reported by capmix.
QUIET = {"VLLM_LOGGING_LEVEL": "CRITICAL", "VLLM_LOGGING_STREAM": "ext://sys.stderr"}
FILES = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "*.py")
OTHER_WEIGHTS = ("original/*", "consolidated*")  # the same weights in other formats
MAX_WAITING = 4 * 2**30  # bytes of preprocessed images that wait for the model
CPU_CACHE = 2**30  # bytes; on GPUs, vLLM measures what is free
MEMORY_SHARE = 0.92  # vLLM's default
FREE_SHARE = 0.97  # of what other programs have left
MODALITIES = {"image": 1, "video": 0, "audio": 0}
# Rules of a generation config that vLLM's sampling parameters cannot express.
OTHER_RULES = (
    "no_repeat_ngram_size", "forced_bos_token_id", "forced_eos_token_id", "suppress_tokens",
    "begin_suppress_tokens", "bad_words_ids", "sequence_bias",
)  # fmt: skip
HOTTEST = 2.0
STALLED = 0.5  # share of the batch timeout after which an engine without a step is broken


class VllmCaptioner:
    """A model that vLLM supports. Loads only safetensors weights.

    Raises UserError if the model cannot be loaded or does not read images.
    """

    extra: ClassVar[str | None] = "vllm"
    packages: ClassVar[tuple[str, ...]] = ("vllm", "transformers", "torch")
    device: ClassVar[str] = "gpu"
    needs_images: ClassVar[bool] = True
    takes_templates: ClassVar[bool] = True

    def __init__(self, settings: CaptionSettings, source: str = ""):
        settings = settings.model_copy(update={"model": settings.model.removeprefix(PREFIX)})
        self._wanted, self._source = settings, source
        caption_prompts(settings.prompt)
        only_downloaded = self.check(settings)
        set_environment()
        folder = model_folder(settings, only_downloaded)
        self._device, dtype = device_and_dtype(settings.device, settings.dtype)
        precision = str(dtype).removeprefix("torch.")
        processor = model_processor(settings, folder)
        self._engine = start_engine(
            settings,
            folder,
            precision,
            self._device,
            # Several captions of an image share the cache of its prompt.
            enable_prefix_caching=settings.captions_per_image > 1,
            limit_mm_per_prompt=dict(MODALITIES),
        )
        weakref.finalize(self, self._engine.close)
        config = self._engine.engine.model_config
        if not config.supports_multimodal_inputs:
            raise UserError(f"captioner {settings.model}: vLLM runs this model without images")
        self.tokenizer = getattr(processor, "tokenizer", processor)
        default = _default_prompt(processor, config.hf_config.model_type)
        self._prompts = caption_prompts(settings.prompt, default)
        self.prompt, self.of_image_alone = self._prompts.recorded, not self._prompts.has_fields
        # vLLM renders in one thread: some of its processors abort if two threads use them.
        self._rendering = threading.Lock()
        self._processor, self._escape = processor, Escape(special_tokens(self.tokenizer))
        # The tokens of the prompts of all images; None if they depend on the sample.
        self._tokens = None if self._prompts.has_fields else self._tokens_of(None)
        generation = generation_config(folder)
        text = getattr(config.hf_config, "text_config", None)
        self._ends = end_tokens(generation, text, config.hf_config, self.tokenizer)
        self._penalty = repetition_penalty(generation, settings)
        pictures = getattr(processor, "image_processor", None)
        self._input_side = None if settings.exact_decode else input_side(pictures)
        self._shorter_side = shorter_side(pictures)
        self._waiting = WeightedSemaphore(MAX_WAITING)
        self.batch_size = settings.batch_size or (32 if self._device == "cpu" else 512)
        self.workers = preparing_threads()
        is_local = Path(settings.model).is_dir()
        self.settings: dict[str, Any] = {
            # A local model is identified by its weights, not by its path.
            "model": Path(settings.model).name if is_local else settings.model,
            "revision": settings.revision if is_local else Path(folder).name,
            "weights": fingerprint(settings.model),
            **self._prompts.marker,
            "dtype": precision,
            "engine": "vllm",
            **({"repetition_penalty": self._penalty} if self._penalty != 1.0 else {}),
            **settings.sampling(),
        }
        self.provenance = vllm_provenance(self._device, self.batch_size)

    @staticmethod
    def check(settings: CaptionSettings) -> bool:
        """Return whether to load only local files. Raises UserError if the model is unavailable."""
        return check_options(settings)

    def prepare(self, sample: Sample, first: int = 0) -> Generation:
        """Decode and preprocess one image, and start the requests of captions `first` to K - 1."""
        image = enlarged(decode_image(sample.image, input_side=self._input_side), SMALLEST_SIDE)
        check_resized(image.size, self._shorter_side)
        sha256, each = hashlib.sha256(sample.image).hexdigest(), self._wanted.captions_per_image
        prompts = self._tokens or self._tokens_of(sample)
        used = range(first // each, len(prompts))
        rendered = {number: self._rendered(image, sha256, prompts[number]) for number in used}
        held = contextlib.ExitStack()
        held.enter_context(self._waiting.held(sum(map(tensor_bytes, rendered.values()))))
        numbers = range(first, each * len(prompts))
        sampling = [self._sampling(sample.draw_name, k) for k in numbers]
        inputs = [rendered[k // each] for k in numbers]
        generation = Generation(inputs, sampling, held.close)
        self._engine.submit(generation)
        return generation

    def _tokens_of(self, sample: Sample | None) -> list[list[int]]:
        """Return the tokens of each prompt, with the texts of one sample in them."""
        with self._rendering:  # fast tokenizers are not thread-safe
            truncate = by_tokens(self.tokenizer)
            prompts = self._prompts.of(sample, truncate, self._escape)
            return [_tokens(self._processor, self.tokenizer, one) for one in prompts]

    def caption(
        self, prepared: Sequence[Generation], uids: Sequence[str], source: str, first: int = 0
    ) -> list[list[Caption]]:
        """Return the captions that `prepare` requested. Requests that failed are repeated."""
        found = outputs(self._engine, prepared, self._wanted.batch_timeout)
        return [[output_caption(self.tokenizer, one, self._ends) for one in some] for some in found]

    def _rendered(self, image: Any, sha256: str, tokens: Sequence[int]) -> Any:
        prompt = {
            "prompt_token_ids": list(tokens),
            "multi_modal_data": {"image": image},
            "multi_modal_uuids": {"image": [sha256]},  # vLLM would hash the pixels
        }
        with self._rendering:
            (rendered,) = self._engine.engine.renderer.render_cmpl([prompt])
        if "mm_kwargs" not in rendered:
            raise SampleError("model_error", "vLLM made no image input")
        return rendered

    def _sampling(self, draw_name: str, k: int) -> Any:
        key = caption_key(self._wanted.seed, draw_name, self._source, k)
        return sampling_params(self._wanted, key, self._ends, self._penalty)


def check_options(settings: CaptionSettings, role: str = CAPTIONER) -> bool:
    """Return whether to load only local files. Raises UserError if the model is unavailable.

    Also for options that vLLM does not have. `role` begins the messages.
    """
    model = settings.model.removeprefix(PREFIX)
    what = f"{role} {PREFIX}{model}"
    if not model:
        raise UserError(f"{role} vllm: expected vllm:ID, a Hub id or a folder")
    if settings.compile_decoder:
        raise UserError(f"{what}: vLLM compiles by itself; omit --compile-decoder")
    if settings.device not in ("auto", "cpu", "cuda"):
        raise UserError(
            f"{what}: --device {settings.device}: vLLM uses the first visible GPU; set "
            "CUDA_VISIBLE_DEVICES instead"
        )
    if settings.temperature > HOTTEST:
        raise UserError(
            f"{what}: --temperature {settings.temperature:g}: vLLM accepts 0 to {HOTTEST:g}"
        )
    return check_hub(model, what, settings.revision)


def outputs(
    engine: EngineThread, prepared: Sequence[Generation], timeout: float
) -> list[list[Any]]:
    """Return vLLM's outputs of some samples. Requests that failed are repeated.

    Raises BrokenDeviceError if the engine hangs; `timeout` is the time limit of a batch.
    """
    for one in prepared:
        if one.has_failed:
            one.restart()
            engine.submit(one)
    try:
        return [one.result() for one in prepared]
    except TimedOutError:
        idle = engine.seconds_since_step()
        if idle > STALLED * timeout:
            raise BrokenDeviceError(f"vLLM made no step for {idle:.0f} s") from None
        if len(prepared) == 1:
            engine.give_up(prepared[0])
        raise


def output_caption(tokenizer: Any, output: Any, ends: Sequence[int]) -> Caption:
    """Return the caption of an output of vLLM."""
    tokens = [token for token in output.token_ids if token not in ends]
    text = tokenizer.decode(tokens, skip_special_tokens=True).strip()
    return Caption(text, "stop" if output.finish_reason == "stop" else "length")


def sampling_params(wanted: CaptionSettings, key: int, ends: Sequence[int], penalty: float) -> Any:
    """Return vLLM's SamplingParams for one caption.

    `key` seeds its draws (caption_key), `ends` are the end tokens, and `penalty` is the repetition
    penalty.
    """
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        temperature=wanted.temperature,
        top_k=wanted.top_k,
        repetition_penalty=penalty,
        seed=key % 2**63,
        min_tokens=min(wanted.min_tokens, wanted.max_tokens),
        max_tokens=wanted.max_tokens,
        # vLLM would also stop at the tokenizer's end token where the model names another one.
        ignore_eos=True,
        stop_token_ids=list(ends),
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def set_environment() -> None:
    """Set the variables that vLLM reads when it is imported."""
    os.environ.update(FORCED)
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)


def model_folder(settings: CaptionSettings, only_downloaded: bool, role: str = CAPTIONER) -> str:
    """Return the folder of the model's files. Downloads a Hub model."""
    if Path(settings.model).is_dir():
        return settings.model
    from huggingface_hub import snapshot_download

    try:
        return str(
            snapshot_download(
                settings.model,
                revision=settings.revision,
                allow_patterns=list(FILES),
                ignore_patterns=list(OTHER_WEIGHTS),
                local_files_only=only_downloaded,
            )
        )
    except Exception as error:  # of the library's HTTP client
        raise _not_loaded(settings, error, role) from error


def model_processor(settings: CaptionSettings, folder: str, role: str = CAPTIONER) -> Any:
    """Return the processor of a model, which is a tokenizer if it reads no images.

    Raises UserError if it cannot be loaded.
    """
    from transformers import AutoProcessor

    try:
        return AutoProcessor.from_pretrained(  # type: ignore[no-untyped-call]
            folder, trust_remote_code=settings.trust_remote_code
        )
    except Exception as error:
        raise _not_loaded(settings, error, role) from error


def start_engine(
    settings: CaptionSettings,
    folder: str,
    dtype: str,
    device: str,
    role: str = CAPTIONER,
    **options: Any,
) -> EngineThread:
    """Load the model in a thread of its own; `options` are further arguments of vLLM's engine.

    Raises UserError if vLLM cannot load it.
    """
    gc.collect()  # an engine that is no longer used would hold the GPU's memory

    def make() -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of vLLM's imports, which no user can fix
            from vllm import EngineArgs, LLMEngine
            from vllm.usage.usage_lib import UsageContext

            arguments = EngineArgs(
                model=folder,
                trust_remote_code=settings.trust_remote_code,
                load_format="safetensors",
                use_tqdm_on_load=False,
                dtype=dtype,
                seed=0,
                max_model_len=-1,  # as many tokens as the model and the memory allow
                mm_processor_cache_gb=0,  # each image of a pool is read once
                enforce_eager=device == "cpu",
                kv_cache_memory_bytes=CPU_CACHE if device == "cpu" else None,
                gpu_memory_utilization=MEMORY_SHARE if device == "cpu" else _memory_share(),
                disable_log_stats=True,
                **options,
            )
            # The defaults of LLM_CLASS are made for throughput.
            return LLMEngine.from_engine_args(arguments, usage_context=UsageContext.LLM_CLASS)

    try:
        return EngineThread(make)
    except Exception as error:
        raise _not_loaded(settings, error, role) from error


def _memory_share() -> float:
    """Return the share of the GPU's memory for vLLM, which does not start with less than that."""
    import torch

    free, total = torch.cuda.mem_get_info()
    return min(MEMORY_SHARE, FREE_SHARE * free / total)


def _not_loaded(settings: CaptionSettings, error: Exception, role: str = CAPTIONER) -> UserError:
    first = " ".join(str(error).split())[:300] or type(error).__name__
    kind = "an image-to-text" if role == CAPTIONER else "a causal text"
    return UserError(
        f"{role} {PREFIX}{settings.model}: cannot be loaded ({first}). Expected a hub id or a "
        f"folder with config, processor and safetensors weights of {kind} model that "
        "vLLM supports, and enough free memory on the GPU."
    )


def vllm_provenance(device: str, batch_size: int) -> dict[str, Any]:
    """Return the versions and the device, for markers."""
    import vllm

    found = provenance(("torch", "transformers"), device, batch_size)
    # Not from the metadata: builds for CPUs are distributions of other names.
    found["versions"]["vllm"] = vllm.__version__
    found["batch_invariant"] = os.environ.get("VLLM_BATCH_INVARIANT", "0") == "1"
    return found


def _default_prompt(processor: Any, kind: str) -> str | None:
    is_chat = getattr(processor, "chat_template", None) is not None
    return PROMPTS.get(kind) or (CHAT_PROMPT if is_chat else None)


def _tokens(processor: Any, tokenizer: Any, prompt: str | None) -> list[int]:
    """Return the tokens of the prompt; vLLM inserts those of the image."""
    text = prompt or ""
    if prompt and getattr(processor, "chat_template", None) is not None:
        content = [{"type": "image"}, {"type": "text", "text": prompt}]
        messages = [{"role": "user", "content": content}]
        text = processor.apply_chat_template(messages, add_generation_prompt=True)
    # Some templates begin with the start token, which the tokenizer would then add twice.
    has_start = bool(tokenizer.bos_token) and text.startswith(tokenizer.bos_token)
    tokens: list[int] = tokenizer(text, add_special_tokens=not has_start)["input_ids"]
    # As in transformers, a captioner without a prompt continues the start token.
    return tokens or [tokenizer.bos_token_id]


def generation_config(folder: str) -> Any:
    """Return the generation config of a model, or None if it has none."""
    from transformers import GenerationConfig

    try:
        return GenerationConfig.from_pretrained(folder)
    except OSError:  # the model has none
        return None


def repetition_penalty(generation: Any, settings: CaptionSettings, role: str = CAPTIONER) -> float:
    """Return the penalty of the generation config, which greedy captions of `generate` follow.

    Logs a warning for the other rules of the config that change logits: vLLM has none of them.
    """
    if settings.plain_sampling:
        return 1.0
    ignored = {name: getattr(generation, name, None) for name in OTHER_RULES}
    shown = ", ".join(f"{name}={value}" for name, value in ignored.items() if value)
    if shown:
        log.warning(
            "%s %s%s: vLLM ignores %s of the generation config",
            role, PREFIX, settings.model, shown,
        )  # fmt: skip
    return float(getattr(generation, "repetition_penalty", None) or 1.0)

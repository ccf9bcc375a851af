"""Caption with image-text models of transformers: BLIP, BLIP-2, GIT, Florence-2, chat VLMs.

The model's `generate` runs greedy decoding with one logits processor, which draws each token as in
sampling.py. Therefore greedy decoding is exactly transformers', and sampling does not depend on the
batch.
"""

import copy
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from PIL import Image

from capmix.caption.backends.blip_vision import run_blip_in_openvino, speed_up_blip
from capmix.caption.backends.generation import (
    decoded,
    generate,
    generation_rules,
    text_positions,
)
from capmix.caption.backends.slot_models import slot_model
from capmix.caption.backends.slot_sizes import SlotsPlan
from capmix.caption.backends.slots import Slots
from capmix.caption.captioner import Caption
from capmix.caption.prompts import caption_prompts
from capmix.caption.sampling import caption_keys
from capmix.caption.settings import CaptionSettings
from capmix.caption.stream import Running, StreamedImage, caption_batch, in_batches
from capmix.engine.batches import SampleError
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
from capmix.models.known import CHAT_PROMPT, FLORENCE_PROMPT, PALIGEMMA_PROMPT
from capmix.models.openvino_tower import Runtime, check_openvino
from capmix.models.pixels import PixelLoader, PixelPlan, pixels_note, processor_plan
from capmix.models.transformers_loading import load_complete, loading
from capmix.pool import Sample
from capmix.prompts.escape import Escape, special_tokens
from capmix.prompts.truncation import by_tokens

PREFIX = "transformers:"
TEXT_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")
VISION_TOWERS = ("vision_model", "vision_tower", "visual", "image_encoder")
PROMPTS = {"florence2": FLORENCE_PROMPT, "paligemma": PALIGEMMA_PROMPT}
BLANK_SIDE = 32  # pixels
GPU_SLOTS, CPU_SLOTS = 512, 32
SMALLEST_SIDE = 5  # pixels; smaller images are enlarged first, as in the paper


class TransformersCaptioner:
    """A model with its processor. Loads only safetensors weights.

    Raises UserError if the model cannot be loaded.
    """

    extra: ClassVar[str | None] = "transformers"
    packages: ClassVar[tuple[str, ...]] = ("torch", "torchvision", "transformers")
    device: ClassVar[str] = "gpu"
    needs_images: ClassVar[bool] = True
    takes_templates: ClassVar[bool] = True
    runtimes: ClassVar[tuple[Runtime, ...]] = ("torch", "openvino")

    def __init__(self, settings: CaptionSettings, source: str = ""):
        settings = settings.model_copy(update={"model": settings.model.removeprefix(PREFIX)})
        self._wanted = settings
        caption_prompts(settings.prompt)
        only_downloaded = self.check(settings)  # before torch is loaded, which takes seconds
        device = check_openvino(settings.runtime, settings.device, settings.dtype)
        self._device, dtype = device_and_dtype(device, settings.dtype)
        self.processor, self.model = _load(settings, self._device, dtype, only_downloaded)
        kind = self.model.config.model_type
        if settings.compile_decoder and not self.model._can_compile_fullgraph:
            raise UserError(
                f"captioner {settings.model}: {kind} models do not support --compile-decoder"
            )
        chat = getattr(self.processor, "chat_template", None) is not None
        default = PROMPTS.get(kind) or (CHAT_PROMPT if chat else None)
        self._prompts = caption_prompts(settings.prompt, default)
        self.prompt, self.of_image_alone = self._prompts.recorded, not self._prompts.has_fields
        self._is_chat = chat
        self.tokenizer = self.processor.tokenizer
        self.tokenizer.padding_side = "left"
        self._own = threading.local()
        self._escape = Escape(special_tokens(self.tokenizer))
        self._positions = text_positions(self.model.config)
        # The texts of all images; None if they depend on the sample.
        self._texts = None if self._prompts.has_fields else self._formatted(self._prompts.of(None))
        self._rules = generation_rules(self.model, self.tokenizer, settings.plain_sampling)
        pictures = self.processor.image_processor
        self._input_side = None if settings.exact_decode else input_side(pictures)
        self._shorter_side = shorter_side(pictures)
        self._plan, self._other_inputs = self._pixel_plan(pictures)
        self._load = PixelLoader(self._plan, self._device) if self._plan else None
        self.batch_size = settings.batch_size or (32 if self._device == "cpu" else 256)
        self.workers = preparing_threads()
        self._slots = self._slots_of(settings)
        weights = fingerprint(settings.model)
        self.settings: dict[str, Any] = {
            # A local model is identified by its weights, not by its path.
            "model": Path(settings.model).name if weights else settings.model,
            "revision": getattr(self.model.config, "_commit_hash", None) or settings.revision,
            "weights": weights,
            **self._prompts.marker,
            "dtype": str(dtype).removeprefix("torch."),
            "runtime": settings.runtime,
            **settings.sampling(),
            **({"generation": self._rules.logits} if self._rules.logits else {}),
        }
        packages = ("torch", "transformers", *(["openvino"] * (settings.runtime == "openvino")))
        self.provenance = provenance(
            packages, self._device, self.batch_size, settings.compile_decoder
        ) | pixels_note(self._plan, settings.exact_decode)
        self.provenance["slots"] = self._slots.sizes.slots if self._slots else 0

    def _slots_of(self, settings: CaptionSettings) -> Slots | None:
        """Return the slots; None if the captions come from `generate`."""
        model = slot_model(self.model)
        if model is None or settings.slots == 0 or self._rules.logits:
            return None
        if len(self._prompts.texts) > 1:  # the captions of an image share one prompt in slots
            return None
        is_gpu = self._device.startswith("cuda")
        most = settings.captions_per_image
        slots = max(most, settings.slots or (GPU_SLOTS if is_gpu else CPU_SLOTS))
        group = max(1, min(slots // (4 * most) or slots // most, self.batch_size))
        return Slots(
            model,
            settings,
            self._rules.ends,
            SlotsPlan(slots, group),
            self._device,
            self._plan is not None,
            self._collate,
            lambda tokens: decoded(self.tokenizer, tokens, self._rules.ends),
            lambda images, running: caption_batch(self, images, running),
        )

    @staticmethod
    def check(settings: CaptionSettings) -> bool:
        """Return whether to load only local files. Raises UserError if the model is unavailable."""
        model = settings.model.removeprefix(PREFIX)
        check_openvino(settings.runtime, settings.device, settings.dtype)
        return check_hub(model, f"captioner {model}", settings.revision)

    def _pixel_plan(self, pictures: Any) -> tuple[PixelPlan | None, list[dict[str, Any]]]:
        """Return the plan for the pixels, and the other inputs of each prompt.

        If the texts depend on the sample, the inputs are those of an example. Returns None if the
        processor has to prepare each image.
        """
        if self._wanted.exact_decode:
            return None, []
        plan, others = None, []
        for text in self._texts or self._formatted(self._prompts.example()):
            found = processor_plan(pictures, partial(self._processed, text=text))
            if found is None:
                return None, []
            plan, other = found
            others.append(other)
        return plan, others

    def prepare(self, sample: Sample) -> Any:
        """Return the processor's tensors for one image, each with a batch dimension of 1.

        With a PixelPlan, `pixel_values` is uint8, and the other tensors are those of all images.
        Returns a dict, or a list with one for each of several prompts. Raises SampleError if the
        sample lacks a text of the prompt, or if the prompt is too long for the model.
        """
        texts = self._texts if self._texts is not None else self._texts_of(sample)
        if self._plan is not None:
            import torch

            pixels = self._plan.prepare(sample.image, SMALLEST_SIDE)
            values = {"pixel_values": torch.from_numpy(pixels)[None]}
            others = self._other_inputs if self._texts is not None else self._text_inputs(texts)
            found = [other | values for other in others]
        else:
            image = enlarged(decode_image(sample.image, input_side=self._input_side), SMALLEST_SIDE)
            check_resized(image.size, self._shorter_side)
            found = [self._processed(image, text) for text in texts]
        self._check_lengths(found)
        return found[0] if len(found) == 1 else found

    def _texts_of(self, sample: Sample) -> list[str | None]:
        """Return the texts for the processor, with the texts of one sample in them."""
        truncate = by_tokens(self._own_processor.tokenizer)
        return self._formatted(self._prompts.of(sample, truncate, self._escape))

    def _text_inputs(self, texts: Sequence[str | None]) -> list[dict[str, Any]]:
        """Return the inputs of each text that do not depend on the image."""
        blank = Image.new("RGB", (BLANK_SIDE, BLANK_SIDE))
        found = [self._processed(blank, text) for text in texts]
        return [{n: t for n, t in one.items() if n != "pixel_values"} for one in found]

    def _formatted(self, prompts: Sequence[str | None]) -> list[str | None]:
        return [self._chat(one) if self._is_chat and one else one for one in prompts]

    def _check_lengths(self, found: Sequence[dict[str, Any]]) -> None:
        """Raise SampleError for a prompt without room for its caption: the device would fail."""
        if self._texts is not None or self._positions is None:
            return
        longest = max(one["input_ids"].shape[1] for one in found if "input_ids" in one)
        room = self._positions - self._wanted.max_tokens
        if longest > room:
            raise SampleError(
                "prompt_too_long",
                f"the prompt has {longest} tokens; the model has room for {room}; limit the fields "
                "of --prompt, as in {raw:128}",
            )

    def _processed(self, image: Any, text: str | None) -> dict[str, Any]:
        own = {} if text is None else {"text": text}
        return dict(self._own_processor(images=image, return_tensors="pt", **own))

    @property
    def _own_processor(self) -> Any:
        if not hasattr(self._own, "processor"):
            # One copy per thread: fast tokenizers are not thread-safe ("Already borrowed").
            self._own.processor = copy.deepcopy(self.processor)
        return self._own.processor

    def stream(
        self, images: Iterator[StreamedImage], running: Running
    ) -> Iterator[list[StreamedImage]]:
        """See caption/stream.py."""
        if self._slots is not None:
            yield from self._slots.stream(images, running)
        else:
            yield from in_batches(self, images, running)

    def caption(
        self, prepared: Sequence[Any], uids: Sequence[str], source: str, first: int = 0
    ) -> list[list[Caption]]:
        """Return captions `first` to K - 1 for each of N images; encode each image once."""
        found: list[list[Caption]] = [[] for _ in prepared]
        each = self._wanted.captions_per_image
        cache = {"cache_implementation": "static"} if self._wanted.compile_decoder else {}
        by_prompt = [one if isinstance(one, list) else [one] for one in prepared]
        # Padding would change the states of a prompt by rounding, and in some models its positions.
        for rows in _same_shapes(by_prompt, () if self._texts is None else TEXT_INPUTS):
            filled = self._padded(rows)
            with _cached_vision(self.model):
                for prompt in range(len(self._prompts.texts)):
                    numbers = range(max(first, prompt * each), (prompt + 1) * each)
                    if not numbers:
                        continue
                    inputs = self._collate([by_prompt[row][prompt] for row in filled])
                    for k in numbers:
                        keys = caption_keys(self._wanted.seed, [uids[r] for r in filled], source, k)
                        texts = generate(
                            self.model, self.tokenizer, inputs, keys.to(self._device),
                            self._wanted, self._rules, **cache,
                        )  # fmt: skip
                        for row, text in zip(rows, texts[: len(rows)], strict=True):
                            found[row].append(text)
        return found

    def _padded(self, rows: list[int]) -> list[int]:
        """Repeat the last row up to a number for which the decoder has been compiled.

        Halves of the batch size are compiled as well: padding the half of a batch that did not fit
        in memory to the full size would never fit.
        """
        if not self._wanted.compile_decoder:
            return rows
        size = self.batch_size
        while size > 1 and size // 2 >= len(rows):
            size //= 2
        return [*rows, *rows[-1:] * (size - len(rows))]

    def _chat(self, prompt: str) -> str:
        content = [{"type": "image"}, {"type": "text", "text": prompt}]
        messages = [{"role": "user", "content": content}]
        text: str = self._own_processor.apply_chat_template(messages, add_generation_prompt=True)
        return text

    def _collate(self, prepared: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Join into one batch on the device. Texts are padded on the left."""
        import torch

        batch = {}
        longest = max(
            (one["input_ids"].shape[1] for one in prepared if "input_ids" in one), default=0
        )
        for name in prepared[0]:
            tensors = [one[name] for one in prepared]
            if self._load is not None and name == "pixel_values":
                pixels = [tensor[0].numpy() for tensor in tensors]
                batch[name] = self._load(pixels, self.model.dtype)
                continue
            if name in TEXT_INPUTS:
                fill = self.tokenizer.pad_token_id or 0 if name == "input_ids" else 0
                pads = [(longest - tensor.shape[1], 0) for tensor in tensors]
                pad = torch.nn.functional.pad
                tensors = [pad(t, p, value=fill) for t, p in zip(tensors, pads, strict=True)]
            joined = torch.cat(tensors).to(self._device)
            batch[name] = joined.to(self.model.dtype) if joined.is_floating_point() else joined
        return batch


def _load(
    settings: CaptionSettings, device: str, dtype: Any, only_downloaded: bool
) -> tuple[Any, Any]:
    from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

    common = {"revision": settings.revision, "trust_remote_code": settings.trust_remote_code}
    common |= {"local_files_only": only_downloaded}
    kind, what = AutoModelForImageTextToText, f"captioner {settings.model}"
    expected = (
        ". Expected a hub id or a folder with config, processor and safetensors weights of an "
        "image-to-text model, and a --device with enough memory."
    )
    with loading(what, expected):
        if settings.runtime == "openvino":  # before the weights, which take long to load
            _check_is_blip(settings.model, AutoConfig.from_pretrained(settings.model, **common))
        processor = AutoProcessor.from_pretrained(settings.model, **common)  # type: ignore[no-untyped-call]
        loaded = load_complete(kind, settings.model, what, common | {"dtype": dtype})
        loaded.to(device).eval()
    if settings.runtime == "openvino":
        run_blip_in_openvino(loaded, what)
    else:
        speed_up_blip(loaded)
    return processor, loaded


def _check_is_blip(model: str, config: Any) -> None:
    if config.model_type != "blip":
        raise UserError(
            f"captioner {model}: --runtime openvino supports only blip models, and this is a "
            f"{config.model_type} model; omit the option"
        )


def _same_shapes(
    prepared: Sequence[Sequence[dict[str, Any]]], padded: Sequence[str]
) -> list[list[int]]:
    """Group rows by the shapes of inputs that are not `padded`; each group forms one batch."""
    groups: dict[Any, list[int]] = {}
    for row, inputs in enumerate(prepared):
        shape = tuple(
            (n, tuple(t.shape[1:])) for one in inputs for n, t in one.items() if n not in padded
        )
        groups.setdefault(shape, []).append(row)
    return list(groups.values())


@contextmanager
def _cached_vision(model: Any) -> Iterator[None]:
    """Cache the last output of each vision tower within the block, keyed by the pixels."""
    towers: dict[str, Any] = {}
    for name, module in model.named_modules():
        outermost = not any(name.startswith(f"{tower}.") for tower in towers)
        if name.rpartition(".")[2] in VISION_TOWERS and outermost:
            towers[name] = module
    for tower in towers.values():
        tower.forward = _cached(tower.forward)
    try:
        yield
    finally:
        for tower in towers.values():
            del tower.forward


def _cached(forward: Any) -> Any:
    memory: list[tuple[Any, Any]] = []

    def cached(*args: Any, **kwargs: Any) -> Any:
        import torch

        pixels = next(value for value in [*args, *kwargs.values()] if torch.is_tensor(value))
        # Compare values: Idefics and SmolVLM pass a new copy of the tensor on each call.
        if not memory or not torch.equal(memory[0][0], pixels):
            memory[:] = [(pixels, forward(*args, **kwargs))]
        return copy.copy(memory[0][1])  # Qwen2-VL writes into what its tower returns

    return cached

"""Caption with open_clip's CoCa, using a custom sampling loop that encodes each image once.

The released `CoCa.generate` fails with transformers 5 (open_clip issues 1129 and 1130). The loop
implements its top-K rule: sample from the logits of the last position, with the end token masked
until `min_tokens`.
"""

import os
from collections.abc import Sequence
from typing import Any, ClassVar

from capmix.caption.backends.coca_decoder import CocaDecoder
from capmix.caption.captioner import Caption
from capmix.caption.sampling import NAN_LOGITS, caption_keys, draw_tokens
from capmix.caption.settings import CaptionSettings
from capmix.errors import UserError
from capmix.models.device import (
    device_and_dtype,
    preparing_threads,
    provenance,
)
from capmix.models.images import check_resized, decode_image
from capmix.models.open_clip import (
    check_open_clip,
    identity,
    input_side,
    load_open_clip,
    shorter_side,
)
from capmix.models.pixels import PixelLoader, pixels_note, transform_plan
from capmix.models.trained_run import RUN, run_directory
from capmix.pool import Sample

PREFIX = "open_clip:"
STEPS_PER_CHECK = 4


class CocaCaptioner:
    """A CoCa model named `open_clip:ARCHITECTURE/TAG` or `run:DIRECTORY`; see models/open_clip.py.

    Raises UserError if it cannot be loaded or is not a CoCa model.
    """

    extra: ClassVar[str | None] = "open_clip"
    packages: ClassVar[tuple[str, ...]] = ("torch", "open_clip")
    device: ClassVar[str] = "gpu"
    needs_images: ClassVar[bool] = True
    of_image_alone: ClassVar[bool] = True

    def __init__(self, settings: CaptionSettings, source: str = ""):
        self._wanted = settings
        self.check(settings)  # before torch is loaded, which takes seconds
        self._device, dtype = device_and_dtype(settings.device, settings.dtype)
        if settings.prompt:
            raise UserError(
                f"captioner {settings.model}: CoCa does not support prompts; omit --prompt"
            )
        name = settings.model.removeprefix(PREFIX)
        self.model, self._preprocess, self.tokenizer = load_open_clip(name, self._device, dtype)
        if not hasattr(self.model, "text_decoder"):
            raise UserError(
                f"captioner {settings.model}: cannot write captions; expected a CoCa model such as "
                "open_clip:coca_ViT-L-14/mscoco_finetuned_laion2b_s13b_b90k"
            )
        if not hasattr(self.model.text, "token_embedding"):
            raise UserError(
                f"captioner {settings.model}: supports only CoCa models with open_clip's text tower"
            )
        self.dtype = dtype
        self._input_side = None if settings.exact_decode else input_side(self.model)
        self._shorter_side = shorter_side(self.model)
        self.batch_size = settings.batch_size or (32 if self._device == "cpu" else 256)
        self.workers = preparing_threads()
        self._plan = None if settings.exact_decode else transform_plan(self._preprocess)
        self._load = PixelLoader(self._plan, self._device) if self._plan else None
        of_model = identity(name)
        is_run = run_directory(name) is not None
        self.settings: dict[str, Any] = {
            "model": of_model["model"] if is_run else settings.model,
            "weights": of_model["weights"],
            "prompt": None,
            "dtype": str(dtype).removeprefix("torch."),
            **settings.sampling(),
        }
        packages = ("torch", "open-clip-torch")
        self.provenance = provenance(packages, self._device, self.batch_size)
        self.provenance |= pixels_note(self._plan, settings.exact_decode)
        if is_run:
            self.provenance["run"] = f"{RUN}{os.path.abspath(run_directory(name) or name)}"

    @staticmethod
    def check(settings: CaptionSettings) -> bool:
        """Raise UserError if the model is known to be unavailable. Does not load torch."""
        return check_open_clip(settings.model.removeprefix(PREFIX), writes_captions=True)

    def prepare(self, sample: Sample) -> Any:
        """Return the pixels of one image (3, H, W): uint8 of the plan, or else float32."""
        if self._plan is not None:
            return self._plan.prepare(sample.image)
        image = decode_image(sample.image, input_side=self._input_side)
        check_resized(image.size, self._shorter_side)
        return self._preprocess(image)

    def caption(
        self, prepared: Sequence[Any], uids: Sequence[str], source: str, first: int = 0
    ) -> list[list[Caption]]:
        """Return captions `first` to K - 1 for each of N images, all generated in one batch."""
        import torch

        wanted = self._wanted
        numbers = range(first, wanted.captions_per_image)
        count = len(numbers)
        keys = torch.stack([caption_keys(wanted.seed, uids, source, k) for k in numbers], 1)
        with torch.inference_mode():
            if self._load is not None:
                pixels = self._load(prepared, self.dtype)
            else:
                pixels = torch.stack(list(prepared)).to(self._device, self.dtype)
            _, patches = self.model._encode_image(pixels)
            tokens = self._sample(
                CocaDecoder(self.model, patches, count), keys.flatten().to(self._device)
            )
        captions = [self._caption(row) for row in tokens.tolist()]
        return [captions[i : i + count] for i in range(0, len(captions), count)]

    def _sample(self, decoder: CocaDecoder, keys: Any) -> Any:
        """Sample tokens int64 (N, steps) after the start token, for captions with keys (N,)."""
        import torch

        wanted = self._wanted
        start, end = self.tokenizer.sot_token_id, self.tokenizer.eot_token_id
        limit = min(wanted.max_tokens, self.model.context_length - 1)
        drawn = torch.full((len(keys),), start, device=self._device)
        tokens = []
        done = torch.zeros(len(keys), dtype=torch.bool, device=self._device)
        is_nan = done.clone()
        for step in range(limit):
            logits = decoder.logits(drawn).float()
            if step < min(wanted.min_tokens, limit):
                logits[:, end] = float("-inf")
            drawn, is_bad = draw_tokens(logits, keys, step, wanted)
            drawn = torch.where(done, end, drawn)
            done, is_nan = done | (drawn == end), is_nan | is_bad
            tokens.append(drawn)
            # A look at `done` waits for the GPU, so that it must not follow each step.
            if step % STEPS_PER_CHECK == STEPS_PER_CHECK - 1 and bool(done.all()):
                break
        if bool(is_nan.any()):
            raise ValueError(NAN_LOGITS)
        return torch.stack(tokens, 1)

    def _caption(self, tokens: list[int]) -> Caption:
        end = self.tokenizer.eot_token_id
        finished = end in tokens
        kept = tokens[: tokens.index(end)] if finished else tokens
        return Caption(self.tokenizer.decode(kept).strip(), "stop" if finished else "length")

"""Short names of models, such as `blip2` for `Salesforce/blip2-opt-2.7b`, with size and license.

The settings replace a short name with the full name. Markers therefore hold the real id, and both
spellings are the same settings. A captioner or scorer that another package registers under the same
name (see models/registry.py) takes precedence. To use a folder with that name, write `./NAME`.
"""

import logging
from dataclasses import dataclass
from typing import Annotated

from pydantic import AfterValidator

from capmix.errors import UserError
from capmix.models.registry import CAPTIONERS, SCORERS, backends

log = logging.getLogger(__name__)

VLLM = "vllm:"
MINI, EMBEDDED = "mini", "embedded"
KINDS = {CAPTIONERS: "captioner", SCORERS: "scorer"}
EXAMPLES = {CAPTIONERS: "blip, blip2 or qwen3-vl", SCORERS: "clip-b32, clip-l14 or datacomp-l14"}
MINI_LIMITS = {
    CAPTIONERS: "it picks from phrases written for clip art",
    SCORERS: "it was trained on clip art",
}
# Captioning prompts that the models were trained with.
CHAT_PROMPT = "Describe this image in one sentence."
FLORENCE_PROMPT = "<CAPTION>"
PALIGEMMA_PROMPT = "caption en"

# Memory sizes of common GPUs, in GB.
CARDS = (4, 6, 8, 12, 16, 24, 32, 48, 80, 141)


@dataclass(frozen=True)
class KnownModel:
    """A model with a short name, for the backends of `group`.

    `hub_id` is the Hub repository of its weights, `parameters` is in millions, and `prompt` is the
    default of `--prompt` (None: no prompt).
    """

    group: str
    name: str
    model: str
    hub_id: str
    about: str
    parameters: int
    licence: str
    prompt: str | None = None

    @property
    def kind(self) -> str:
        """`captioner` or `scorer`."""
        return KINDS[self.group]

    @property
    def gpu_gb(self) -> int:
        """Memory in GB of the smallest common GPU that fits the bfloat16 weights and small batches.

        This is an estimate: 2 bytes per parameter, plus 20%, plus 1 GB for torch. Batches that do
        not fit are halved.
        """
        needed = self.parameters * 2 / 1000 * 1.2 + 1
        return next(card for card in CARDS if card >= needed)


def _transformers(name: str, hub_id: str, about: str, size: int, licence: str,
                  prompt: str | None = None) -> KnownModel:  # fmt: skip
    return KnownModel(CAPTIONERS, name, hub_id, hub_id, about, size, licence, prompt)


def _coca(name: str, model: str, hub_id: str, about: str, size: int) -> KnownModel:
    return KnownModel(CAPTIONERS, name, f"open_clip:{model}", hub_id, about, size, "MIT")


def _clip(
    name: str, model: str, hub_id: str, about: str, size: int, licence: str = "MIT"
) -> KnownModel:
    return KnownModel(SCORERS, name, model, hub_id, about, size, licence)


def _siglip2(name: str, hub_id: str, about: str, size: int) -> KnownModel:
    model = f"transformers:{hub_id}"  # open_clip's version needs a transformers tokenizer anyway
    return KnownModel(SCORERS, name, model, hub_id, about, size, "Apache-2.0")


# Ids, parameters and licenses are from the model cards; all weights are available as safetensors.
KNOWN = (
    _transformers("blip", "Salesforce/blip-image-captioning-large",
                  "short captions, fast", 470, "BSD-3-Clause"),
    _transformers("blip2", "Salesforce/blip2-opt-2.7b", "the paper's captioner", 3745, "MIT"),
    _coca("coca", "coca_ViT-L-14/mscoco_finetuned_laion2b_s13b_b90k",
          "laion/mscoco_finetuned_CoCa-ViT-L-14-laion2B-s13B-b90k", "captions as in COCO", 638),
    _coca("coca-b32", "coca_ViT-B-32/mscoco_finetuned_laion2b_s13b_b90k",
          "laion/mscoco_finetuned_CoCa-ViT-B-32-laion2B-s13B-b90k", "captions as in COCO, fast",
          254),
    _transformers("git", "microsoft/git-large-coco", "captions as in COCO", 394, "MIT"),
    _transformers("florence2", "florence-community/Florence-2-base",
                  "short captions, fast", 232, "MIT", FLORENCE_PROMPT),
    _transformers("florence2-large", "florence-community/Florence-2-large",
                  "short captions", 777, "MIT", FLORENCE_PROMPT),
    _transformers("smolvlm", "HuggingFaceTB/SmolVLM2-2.2B-Instruct",
                  "follows a prompt", 2247, "Apache-2.0", CHAT_PROMPT),
    _transformers("qwen3-vl", "Qwen/Qwen3-VL-4B-Instruct",
                  "follows a prompt, details", 4438, "Apache-2.0", CHAT_PROMPT),
    _transformers("qwen3-vl-2b", "Qwen/Qwen3-VL-2B-Instruct",
                  "follows a prompt", 2127, "Apache-2.0", CHAT_PROMPT),
    _transformers("qwen3-vl-8b", "Qwen/Qwen3-VL-8B-Instruct",
                  "follows a prompt, most details", 8767, "Apache-2.0", CHAT_PROMPT),
    _transformers("paligemma2", "google/paligemma2-3b-mix-224",
                  "short captions; gated", 3032, "Gemma", PALIGEMMA_PROMPT),
    _transformers("llava", "llava-hf/llava-1.5-7b-hf",
                  "follows a prompt", 7063, "Llama 2", CHAT_PROMPT),
    _clip("clip-b32", "ViT-B-32-quickgelu/openai", "timm/vit_base_patch32_clip_224.openai",
          "OpenAI's CLIP, fast", 151),
    _clip("clip-b16", "ViT-B-16-quickgelu/openai", "timm/vit_base_patch16_clip_224.openai",
          "OpenAI's CLIP", 150),
    _clip("clip-l14", "ViT-L-14-quickgelu/openai", "timm/vit_large_patch14_clip_224.openai",
          "the paper's and DataComp's filter", 428),
    _clip("datacomp-b32", "ViT-B-32/datacomp_xl_s13b_b90k",
          "laion/CLIP-ViT-B-32-DataComp.XL-s13B-b90K", "trained on DataComp-1B, fast", 151),
    _clip("datacomp-b16", "ViT-B-16/datacomp_xl_s13b_b90k",
          "laion/CLIP-ViT-B-16-DataComp.XL-s13B-b90K", "trained on DataComp-1B", 150),
    _clip("datacomp-l14", "ViT-L-14/datacomp_xl_s13b_b90k",
          "laion/CLIP-ViT-L-14-DataComp.XL-s13B-b90K", "trained on DataComp-1B", 428),
    _clip("dfn-l14", "ViT-L-14-quickgelu/dfn2b", "apple/DFN2B-CLIP-ViT-L-14",
          "data filtering networks", 428, "Apple"),
    _siglip2("siglip2", "google/siglip2-base-patch16-224", "many languages", 375),
    _siglip2("siglip2-so400m", "google/siglip2-so400m-patch14-384",
             "many languages, most accurate", 1136),
)  # fmt: skip


def full_name(group: str, model: str) -> str:
    """Return the full name for a short name; any other name is returned unchanged.

    `vllm:NAME` is a captioner of transformers that vLLM runs.
    """
    prefix = VLLM if model.startswith(VLLM) else ""
    name = model.removeprefix(prefix)
    for one in KNOWN:
        if (one.group, one.name) == (group, name) and model not in backends(group):
            return f"{VLLM}{one.hub_id}" if prefix else one.model
    return model


def hub_id_of(model: str) -> str | None:
    """Return the Hub repository of an open_clip model that has a short name; None for others."""
    names = ((one.model.removeprefix("open_clip:"), one.hub_id) for one in KNOWN)
    return next((hub_id for name, hub_id in names if name == model), None)


def chosen_model(
    group: str, model: str, pool: str | None, what: str, option: str = "--model"
) -> str:
    """Return the model that a command uses on a pool. `pool` is None if the command has no pool.

    If `model` is empty, returns the embedded model on the embedded pool, and raises UserError on
    any other pool: the embedded models would give real data a demo's texts and scores. `what`
    begins the message, and `option` is the option that it names.
    """
    if not model and pool == EMBEDDED:
        return MINI
    if not model:
        raise UserError(
            f"{what}: choose a {KINDS[group]} with {option}, for example {EXAMPLES[group]} "
            f"(`capmix models` lists them); only the pool {EMBEDDED!r} has a default"
        )
    if model == MINI and pool != EMBEDDED:
        log.warning(
            "%s: %s is the demo's toy model (%s); for real data use, for example, %s",
            what, MINI, MINI_LIMITS[group], EXAMPLES[group],
        )  # fmt: skip
    return model


CaptionModel = Annotated[str, AfterValidator(lambda name: full_name(CAPTIONERS, name))]
ScoreModel = Annotated[str, AfterValidator(lambda name: full_name(SCORERS, name))]

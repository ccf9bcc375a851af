"""Short names of models: `blip2` for `Salesforce/blip2-opt-2.7b`, with what to know before a run.

The settings replace a short name by what it stands for, so that markers hold the real id and both
spellings are the same settings. A captioner or scorer that a package registers under the same name
(models/registry.py) comes first; a folder of that name is `./NAME`.
"""

import logging
from dataclasses import dataclass
from typing import Annotated

from pydantic import AfterValidator

from capmix.errors import UserError
from capmix.models.registry import CAPTIONERS, SCORERS, backends

log = logging.getLogger(__name__)

MINI, EMBEDDED = "mini", "embedded"
KINDS = {CAPTIONERS: "captioner", SCORERS: "scorer"}
EXAMPLES = {CAPTIONERS: "blip, blip2 or qwen3-vl", SCORERS: "clip-b32, clip-l14 or datacomp-l14"}
OF_MINI = {
    CAPTIONERS: "it picks phrases that were written for clip art",
    SCORERS: "it was trained on clip art",
}
# Prompts of captioning, by what a model was trained with.
CHAT_PROMPT = "Describe this image in one sentence."
FLORENCE_PROMPT = "<CAPTION>"
PALIGEMMA_PROMPT = "caption en"


@dataclass(frozen=True)
class KnownModel:
    """A model with a short name, for the backends of `group`. `parameters` are in millions;
    `prompt` is what it is asked without `--prompt`, None where it is asked nothing."""

    group: str
    name: str
    model: str
    about: str
    parameters: int
    licence: str
    prompt: str | None = None

    @property
    def kind(self) -> str:
        """captioner or scorer."""
        return KINDS[self.group]

    @property
    def weights_gb(self) -> float:
        """GB of weights in bfloat16, which is what GPUs hold."""
        return self.parameters * 2 / 1000


def _captioner(name: str, model: str, about: str, size: int, licence: str,
               prompt: str | None = None) -> KnownModel:  # fmt: skip
    return KnownModel(CAPTIONERS, name, model, about, size, licence, prompt)


def _scorer(name: str, model: str, about: str, size: int, licence: str) -> KnownModel:
    return KnownModel(SCORERS, name, model, about, size, licence)


# Ids, parameters and licences are those of the model cards; architectures and tags open_clip's.
KNOWN = (
    _captioner("blip", "Salesforce/blip-image-captioning-large",
               "short captions, fast", 470, "BSD-3-Clause"),
    _captioner("blip2", "Salesforce/blip2-opt-2.7b",
               "the paper's captioner", 3745, "MIT"),
    _captioner("coca", "open_clip:coca_ViT-L-14/mscoco_finetuned_laion2b_s13b_b90k",
               "captions in COCO's style; the paper's second captioner", 638, "MIT"),
    _captioner("coca-b32", "open_clip:coca_ViT-B-32/mscoco_finetuned_laion2b_s13b_b90k",
               "a small CoCa", 254, "MIT"),
    _captioner("git", "microsoft/git-large-coco",
               "captions in COCO's style", 394, "MIT"),
    _captioner("florence2", "florence-community/Florence-2-base",
               "short captions, small and fast", 232, "MIT", FLORENCE_PROMPT),
    _captioner("florence2-large", "florence-community/Florence-2-large",
               "short captions", 777, "MIT", FLORENCE_PROMPT),
    _captioner("smolvlm", "HuggingFaceTB/SmolVLM2-2.2B-Instruct",
               "follows a prompt, small", 2247, "Apache-2.0", CHAT_PROMPT),
    _captioner("qwen3-vl", "Qwen/Qwen3-VL-4B-Instruct",
               "follows a prompt, detailed", 4438, "Apache-2.0", CHAT_PROMPT),
    _captioner("qwen3-vl-2b", "Qwen/Qwen3-VL-2B-Instruct",
               "follows a prompt", 2127, "Apache-2.0", CHAT_PROMPT),
    _captioner("qwen3-vl-8b", "Qwen/Qwen3-VL-8B-Instruct",
               "follows a prompt, most detailed", 8767, "Apache-2.0", CHAT_PROMPT),
    _captioner("paligemma2", "google/paligemma2-3b-mix-224",
               "short captions; accept its licence on its page first", 3032, "Gemma",
               PALIGEMMA_PROMPT),
    _captioner("llava", "llava-hf/llava-1.5-7b-hf",
               "follows a prompt", 7063, "Llama 2", CHAT_PROMPT),
    _scorer("clip-b32", "ViT-B-32-quickgelu/openai", "OpenAI's CLIP, fast", 151, "MIT"),
    _scorer("clip-b16", "ViT-B-16-quickgelu/openai", "OpenAI's CLIP", 150, "MIT"),
    _scorer("clip-l14", "ViT-L-14-quickgelu/openai",
            "OpenAI's CLIP; the paper's and DataComp's filter", 428, "MIT"),
    _scorer("datacomp-b32", "ViT-B-32/datacomp_xl_s13b_b90k",
            "trained on DataComp-1B, fast", 151, "MIT"),
    _scorer("datacomp-b16", "ViT-B-16/datacomp_xl_s13b_b90k", "trained on DataComp-1B", 150, "MIT"),
    _scorer("datacomp-l14", "ViT-L-14/datacomp_xl_s13b_b90k",
            "trained on DataComp-1B", 428, "MIT"),
    _scorer("dfn-l14", "ViT-L-14-quickgelu/dfn2b",
            "Apple's data filtering networks' CLIP", 428, "Apple"),
    _scorer("siglip2", "transformers:google/siglip2-base-patch16-224",
            "many languages", 375, "Apache-2.0"),
    _scorer("siglip2-so400m", "transformers:google/siglip2-so400m-patch14-384",
            "many languages, most accurate", 1136, "Apache-2.0"),
)  # fmt: skip


def full_name(group: str, model: str) -> str:
    """What a short name stands for; any other name as it is."""
    for one in KNOWN:
        if (one.group, one.name) == (group, model) and model not in backends(group):
            return one.model
    return model


def chosen_model(
    group: str, model: str, pool: str | None, what: str, option: str = "--model"
) -> str:
    """The model that a command works with on a pool (None: there is none).

    Without one it is the embedded model on the embedded pool. Raises UserError, which begins with
    `what`, on any other: the embedded models would give real data a demo's texts and scores.
    """
    if not model and pool == EMBEDDED:
        return MINI
    if not model:
        raise UserError(
            f"{what}: name a {KINDS[group]} with {option}, such as {EXAMPLES[group]} (`capmix "
            f"models` lists them); only the pool {EMBEDDED!r} has one by default"
        )
    if model == MINI and pool != EMBEDDED:
        log.warning(
            "%s: %s is the demo's toy model (%s); for real data name one such as %s",
            what, MINI, OF_MINI[group], EXAMPLES[group],
        )  # fmt: skip
    return model


CaptionModel = Annotated[str, AfterValidator(lambda name: full_name(CAPTIONERS, name))]
ScoreModel = Annotated[str, AfterValidator(lambda name: full_name(SCORERS, name))]

"""Load a captioner by name and build the stages that write its captions."""

from typing import Any

from capmix.caption.image_stage import image_caption_stage
from capmix.caption.prompts import caption_prompts
from capmix.caption.settings import CaptionSettings
from capmix.caption.stage import caption_stage
from capmix.engine.stage import Stage
from capmix.errors import UserError
from capmix.models.image_pass import embed_stage
from capmix.models.registry import CAPTIONERS, find_backend, make_backend, require_members
from capmix.pool import ImagePool
from capmix.pool.selection import Selection
from capmix.storage.store import Store

MEMBERS = ("settings", "caption")
OF_IMAGES = ("batch_size", "workers", "prepare")  # required of captioners without an encoder


def make_captioner(settings: CaptionSettings, source: str) -> Any:
    """Load the captioner. Returns a Captioner or an ImageCaptioner (captioner.py).

    Raises UserError if a package is missing, the class is not a captioner, or the model cannot be
    loaded.
    """
    model = settings.model
    _check_prompts(settings)
    made = make_backend(CAPTIONERS, model, settings=settings, source=source)
    require_members(made, model, MEMBERS if hasattr(made, "encoder") else (*MEMBERS, *OF_IMAGES))
    return made


def _check_prompts(settings: CaptionSettings) -> None:
    """Raise UserError for an invalid prompt, before the model is loaded.

    Other captioners get a prompt with braces as it is.
    """
    if getattr(find_backend(CAPTIONERS, settings.model), "takes_templates", False):
        caption_prompts(settings.prompt)
    elif isinstance(settings.prompt, list):
        raise UserError(f"--model {settings.model} takes only one prompt; pass --prompt once")


def caption_stages(
    pool: ImagePool,
    store: Store,
    source: str,
    settings: CaptionSettings,
    selection: Selection | None = None,
    captioner: Any = None,
) -> list[Stage]:
    """Return the stages that caption one source. Loads the model unless `captioner` is given."""
    captioner = captioner or make_captioner(settings, source)
    language, timeout = settings.language, settings.batch_timeout
    if hasattr(captioner, "encoder"):
        images = embed_stage(pool, captioner.encoder, batch_timeout=timeout)
        return [images, caption_stage(store, captioner, source, language, selection)]
    return [image_caption_stage(pool, captioner, source, language, timeout, selection, store)]

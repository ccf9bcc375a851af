"""From the name of a captioner to the stages that write its captions."""

from capmix.caption.captioner import ImageCaptioner
from capmix.caption.image_stage import image_caption_stage
from capmix.caption.settings import CaptionSettings
from capmix.caption.stage import caption_stage, field_stage
from capmix.engine.stage import Stage
from capmix.models.image_pass import embed_stage
from capmix.pool import Pool
from capmix.storage.store import Store

FIELD, SERVER, OPEN_CLIP, MINI = "field:", "server:", "open_clip:", "mini"


def needs_gpu(settings: CaptionSettings) -> bool:
    """Whether the captioner runs on a GPU of its own choice, where there is one."""
    elsewhere = settings.model == MINI or settings.model.startswith((FIELD, SERVER))
    return not elsewhere and settings.device in ("auto", "cuda")


def caption_stages(pool: Pool, store: Store, source: str, settings: CaptionSettings) -> list[Stage]:
    """The stages of one source, with the model loaded. See CaptionSettings for its names."""
    if settings.model.startswith(FIELD):
        return [field_stage(pool, settings.model.removeprefix(FIELD), source)]
    timeout = settings.batch_timeout
    if settings.model == MINI:
        from capmix.caption.mini import MiniCaptioner
        from capmix.mini.image_tower import LiteTower

        captioner = MiniCaptioner(LiteTower(), settings)
        images = embed_stage(pool, captioner.encoder, batch_timeout=timeout)
        return [images, caption_stage(store, captioner, source, settings.language)]
    captioner_of_images = _image_captioner(settings, source)
    return [image_caption_stage(pool, captioner_of_images, source, settings.language, timeout)]


def _image_captioner(settings: CaptionSettings, source: str) -> ImageCaptioner:
    if settings.model.startswith(OPEN_CLIP):
        from capmix.caption.open_clip import CocaCaptioner

        return CocaCaptioner(settings)
    if settings.model.startswith(SERVER):
        from capmix.caption.server import ServerCaptioner

        return ServerCaptioner(settings, source)
    from capmix.caption.transformers import TransformersCaptioner

    return TransformersCaptioner(settings)

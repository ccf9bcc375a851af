"""From the name of a scorer to the model, and to the stages that write its scores."""

from collections.abc import Sequence

from capmix.engine.stage import Stage
from capmix.models.device import device_and_dtype
from capmix.models.image_pass import embed_stage
from capmix.pool import Pool
from capmix.score.scorer import Scorer
from capmix.score.settings import ScoreSettings
from capmix.score.stage import ImagePass, fresh_score_stage, saved_score_stage
from capmix.storage.store import Store

MINI = "mini"


def needs_gpu(settings: ScoreSettings) -> bool:
    """Whether the scorer runs on a GPU of its own choice, where there is one."""
    return settings.model != MINI and settings.device in ("auto", "cuda")


def make_scorer(settings: ScoreSettings) -> Scorer:
    """The model, loaded. See ScoreSettings for its names."""
    if settings.model == MINI:
        from capmix.mini.image_tower import LiteTower
        from capmix.score.mini import MiniScorer

        return MiniScorer(LiteTower())
    device, dtype = device_and_dtype(settings.device, settings.dtype)
    about = settings.model, settings.name, device, dtype, settings.exact_decode
    if settings.model.startswith("transformers:"):
        from capmix.score.transformers import TransformersScorer

        return TransformersScorer(*about)
    from capmix.score.open_clip import OpenClipScorer

    return OpenClipScorer(*about)


def score_stages(
    pool: Pool, store: Store, sources: Sequence[str], settings: ScoreSettings
) -> list[Stage]:
    """A stage for each source, with the model loaded: one image pass for all of them."""
    scorer, timeout = make_scorer(settings), settings.batch_timeout
    if settings.save_embeddings or settings.model == MINI:
        images = embed_stage(pool, scorer.encoder, batch_timeout=timeout)
        return [
            images,
            *(saved_score_stage(store, scorer, source, timeout) for source in sources),
        ]
    shared = ImagePass(pool, scorer, timeout)
    return [fresh_score_stage(store, scorer, source, shared, timeout) for source in sources]

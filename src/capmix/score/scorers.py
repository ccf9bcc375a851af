"""From the name of a scorer to the model, and to the stages that write its scores."""

from collections.abc import Sequence

from capmix.engine.stage import Stage
from capmix.errors import UserError
from capmix.models.image_pass import embed_stage
from capmix.models.registry import SCORERS, find_backend, make_backend, require_members
from capmix.models.selected import SelectedSamples
from capmix.pool import Pool
from capmix.pool.selection import Selection
from capmix.score.scorer import Scorer
from capmix.score.settings import ScoreSettings
from capmix.score.stage import (
    ImagePass,
    fresh_score_stage,
    saved_score_stage,
)
from capmix.storage.layout import SCORES
from capmix.storage.names import check_scorer_columns
from capmix.storage.store import Store

MEMBERS = ("name", "settings", "encoder", "project_images", "encode_texts", "too_long")


def needs_gpu(settings: ScoreSettings) -> bool:
    """Whether the scorer runs on a GPU of its own choice, where there is one."""
    on_gpu = getattr(find_backend(SCORERS, settings.model), "device", "gpu") == "gpu"
    return on_gpu and settings.device in ("auto", "cuda")


def check_preprocess(settings: ScoreSettings) -> None:
    """Raise UserError where the scorer does not prepare images as asked for."""
    known = getattr(find_backend(SCORERS, settings.model), "preprocesses", ("capmix",))
    if settings.preprocess not in known:
        raise UserError(
            f"--preprocess {settings.preprocess}: the scorer {settings.model} takes "
            f"{' or '.join(known)} only; name a model of open_clip, or leave the option out"
        )


def make_scorer(settings: ScoreSettings) -> Scorer:
    """The model, loaded. See ScoreSettings for its names.

    Raises UserError where a package is missing, the class is no scorer, it does not prepare images
    as asked for, or the model cannot be loaded.
    """
    check_preprocess(settings)
    made: Scorer = make_backend(SCORERS, settings.model, settings=settings)
    require_members(made, settings.model, MEMBERS)
    return made


def score_stages(
    pool: Pool,
    store: Store,
    sources: Sequence[str],
    settings: ScoreSettings,
    selection: Selection | None = None,
    scorer: Scorer | None = None,
) -> list[Stage]:
    """A stage for each source, with the model loaded, unless it is given: one image pass for all
    of them. Embeddings that are kept are those of all samples, whatever the `selection`.

    Raises UserError where recipes could not tell the scores from those of another scorer.
    """
    scorer, timeout = scorer or make_scorer(settings), settings.batch_timeout
    check_scorer_columns(scorer.name, store.folders(SCORES))
    selected = SelectedSamples(store, selection) if selection else None
    if settings.save_embeddings or getattr(scorer, "keeps_embeddings", False):
        images = embed_stage(pool, scorer.encoder, batch_timeout=timeout)
        return [
            images,
            *(saved_score_stage(store, scorer, source, timeout, selected) for source in sources),
        ]
    shared = ImagePass(pool, scorer, timeout, selected)
    return [
        fresh_score_stage(store, scorer, source, shared, timeout, selected) for source in sources
    ]

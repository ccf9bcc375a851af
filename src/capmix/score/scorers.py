"""Load a scorer by name and build the stages that write its scores."""

from collections.abc import Sequence

from capmix.engine.stage import Stage
from capmix.errors import UserError
from capmix.models.image_pass import embed_stage
from capmix.models.registry import SCORERS, find_backend, make_backend, require_members
from capmix.models.selected import SelectedSamples
from capmix.pool import ImagePool
from capmix.pool.selection import Selection
from capmix.score.masked import MaskedPool, TextBoxes, masked_scorer
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

MEMBERS = ("name", "settings", "encoder", "project_images", "tokenize", "encode_tokens")


def check_preprocess(settings: ScoreSettings) -> None:
    """Raise UserError if the scorer does not support the requested preprocessing."""
    known = getattr(find_backend(SCORERS, settings.model), "preprocesses", ("capmix",))
    if settings.preprocess not in known:
        raise UserError(
            f"--preprocess {settings.preprocess}: the scorer {settings.model} supports only "
            f"{' or '.join(known)}; choose an open_clip model or omit the option"
        )


def make_scorer(settings: ScoreSettings) -> Scorer:
    """Load the scorer. See ScoreSettings for model names.

    Raises UserError if a package is missing, the class is not a scorer, it does not support the
    requested preprocessing, or the model cannot be loaded.
    """
    check_preprocess(settings)
    made: Scorer = make_backend(SCORERS, settings.model, settings=settings)
    require_members(made, settings.model, MEMBERS)
    return made


def score_stages(
    pool: ImagePool,
    store: Store,
    sources: Sequence[str],
    settings: ScoreSettings,
    selection: Selection | None = None,
    scorer: Scorer | None = None,
) -> list[Stage]:
    """Return a scoring stage per source; all sources share one image pass.

    Loads the model unless `scorer` is given. With `save_embeddings`, all samples are embedded,
    regardless of `selection`. Raises UserError if recipes could not distinguish the column names of
    these scores from another scorer's.
    """
    scorer, timeout = scorer or make_scorer(settings), settings.batch_timeout
    boxes = TextBoxes(store, settings.mask) if settings.mask else None
    if boxes is not None:
        pool, scorer = MaskedPool(pool, boxes), masked_scorer(scorer, boxes)
    check_scorer_columns(scorer.name, store.folders(SCORES))
    selected = SelectedSamples(store, selection) if selection else None
    if settings.save_embeddings or getattr(scorer, "keeps_embeddings", False):
        images = embed_stage(pool, scorer.encoder, batch_timeout=timeout)
        return [
            boxes.noted(images) if boxes else images,
            *(saved_score_stage(store, scorer, source, timeout, selected) for source in sources),
        ]
    shared = ImagePass(pool, scorer, timeout, selected)
    fresh = [
        fresh_score_stage(store, scorer, source, shared, timeout, selected) for source in sources
    ]
    return [boxes.noted(stage) for stage in fresh] if boxes else fresh

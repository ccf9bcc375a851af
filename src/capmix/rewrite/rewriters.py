"""Load a rewriter by name and build the stage that writes its texts."""

from collections.abc import Callable
from typing import Any

from capmix.engine.stage import Stage
from capmix.errors import UserError
from capmix.models.registry import (
    CLASS,
    REWRITERS,
    make_backend,
    require,
    require_members,
)
from capmix.pool import Pool
from capmix.pool.selection import Selection
from capmix.prompts.escape import Escape
from capmix.prompts.truncation import by_pieces
from capmix.rewrite.clip_fit import ClipFit
from capmix.rewrite.inputs import InputMaker, TextTools, check_prompts
from capmix.rewrite.settings import RewriteSettings
from capmix.rewrite.stage import rewrite_stage
from capmix.storage.store import Store

MEMBERS = ("settings", "batch_size", "workers", "prepare", "rewrite")


def make_rewriter(settings: RewriteSettings, source: str) -> Any:
    """Load the rewriter. Returns a Rewriter (rewriter.py).

    Raises UserError if a package is missing, the class is not a rewriter, or the model cannot be
    loaded.
    """
    made = make_backend(REWRITERS, settings.model, settings=settings, source=source)
    require_members(made, settings.model, MEMBERS)
    return made


def rewrite_stages(
    pool: Pool,
    store: Store,
    source: str,
    settings: RewriteSettings,
    selection: Selection | None = None,
    rewriter: Any = None,
) -> list[Stage]:
    """Return the stage that writes one source. Loads the model unless `rewriter` is given.

    Raises UserError for an invalid prompt, before the model is loaded.
    """
    check_prompts(settings)
    rewriter = rewriter or make_rewriter(settings, source)
    preset, fit = settings.chosen_preset, _clip_fit(settings)
    if preset and preset.template is None and not getattr(rewriter, "translates", False):
        what = f"--preset {preset.name}: {settings.model} is not a translation model; "
        if CLASS.fullmatch(settings.model):
            raise UserError(f"{what}if it is, set its attribute `translates` to True")
        raise UserError(
            f"{what}choose one, such as facebook/nllb-200-distilled-600M, or give a --prompt "
            "instead"
        )
    tools = TextTools(
        getattr(rewriter, "truncate", by_pieces),
        Escape(getattr(rewriter, "special_tokens", ())),
        _language(settings),
        fit.count if fit else None,
        getattr(rewriter, "languages", None),
    )
    inputs = InputMaker(settings, tools)
    cut = fit.cut if fit else None
    return [rewrite_stage(pool, store, rewriter, inputs, source, settings, selection, cut)]


def _language(settings: RewriteSettings) -> Callable[[str], str] | None:
    """Return the function that detects languages if there is a target language.

    Raises UserError if fastText is missing.
    """
    if settings.target is None:
        return None
    require(["fasttext"], "--target", "language")
    from capmix.mix.functions import language_of

    return language_of()


def _clip_fit(settings: RewriteSettings) -> ClipFit | None:
    """Return what makes texts fit CLIP's context, for --preset shorten; else None.

    Raises UserError if open_clip is missing.
    """
    preset = settings.chosen_preset
    if preset is None or preset.clip_tokens is None:
        return None
    require(["open_clip", "tokenizers"], f"--preset {preset.name}", "open_clip")
    return ClipFit(preset.clip_tokens)

"""Train and evaluate the probes of subsets, with the options of `capmix probe`."""

from collections.abc import Sequence
from functools import cache

from capmix.errors import UserError
from capmix.evaluation.embedded import embedded_evalsets
from capmix.evaluation.other_sets import open_evalset
from capmix.models.image_pass import ImageEncoder
from capmix.pool import EMBEDDED
from capmix.probe.evalset import FeatureSet, load_features
from capmix.probe.evaluate import ProbeResult, evaluate
from capmix.probe.fit import FitSettings, train_probes
from capmix.probe.images import encoder_of
from capmix.probe.settings import TowerSettings
from capmix.probe.towers import Towers
from capmix.storage.layout import PROBE_RESULTS
from capmix.storage.store import Store


def fit_settings(settings: TowerSettings, towers: Towers) -> FitSettings:
    """Return the training settings; the default number of steps depends on the text side."""
    return FitSettings(settings.steps or towers.texts.steps, settings.batch_size)


def open_sets(
    store: Store, names: Sequence[str], towers: Towers, settings: TowerSettings, what: str
) -> list[FeatureSet]:
    """Open evaluation sets, with the features of their images; `embedded` stands for the demo's.

    Raises UserError if a set cannot be read, or two have the same name.
    """
    folders: list[str] = []
    for name in names:
        folders += embedded_evalsets() if name == EMBEDDED else [name]
    opened = [open_evalset(folder) for folder in folders]
    if len({one.name for one in opened}) < len(opened):
        raise UserError(f"{what}: two evaluation sets have the same name in {', '.join(folders)}")

    @cache
    def encoder() -> ImageEncoder:
        return encoder_of(towers.images, settings.model, settings.device)

    return [load_features(store, one, towers.images, encoder) for one in opened]


def probe_subset(
    store: Store,
    subset: str,
    seeds: Sequence[int],
    sets: Sequence[FeatureSet],
    towers: Towers,
    settings: TowerSettings,
    folder: str = PROBE_RESULTS,
) -> list[ProbeResult]:
    """Train a probe per seed on a subset and evaluate it on the sets; finished ones are kept.

    The results are written below `folder`.
    """
    found = train_probes(store, subset, seeds, towers, fit_settings(settings, towers))
    return [evaluate(store, one, sets, towers, folder) for one in found]

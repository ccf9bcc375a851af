"""The two sides of a probe, chosen by the options."""

from dataclasses import dataclass, field
from typing import Any

from capmix.errors import UserError
from capmix.mini.weights import MINI_PACKAGES
from capmix.models.registry import require
from capmix.probe.images import EMBEDDED_TOWER, MINI, FrozenImages, saved_images
from capmix.probe.settings import MAX_ROWS, TowerSettings
from capmix.probe.texts import TextSide, WordTexts
from capmix.probe.transformer import TransformerTexts
from capmix.score.scorers import make_scorer
from capmix.score.settings import ScoreSettings
from capmix.storage.layout import EMBEDDINGS
from capmix.storage.store import Store

PACKAGES = ("torch", "tokenizers", "safetensors")


@dataclass(frozen=True)
class Towers:
    """The image and text side of a probe, and how many rows of a subset are loaded."""

    images: FrozenImages = field(default_factory=FrozenImages)
    texts: TextSide = field(default_factory=WordTexts)
    max_rows: int = MAX_ROWS

    @property
    def variant(self) -> str:
        """The folder of the probes of a subset; empty for the embedded towers."""
        if self.images.is_embedded and self.texts.name == WordTexts.name:
            return ""
        return f"{self.images.name}.{self.texts.name}"

    @property
    def config(self) -> dict[str, Any]:
        """The settings in the markers of probes; those at their default are left out."""
        known: dict[str, Any] = {"image_tower": self.images.name}
        known["text_tower"] = self.texts.digest
        known |= {"image_config": dict(self.images.config)} if self.images.config else {}
        known |= {"max_rows": self.max_rows} if self.max_rows != MAX_ROWS else {}
        return known | self.texts.config

    def place(self, subset: str, seed: int) -> str:
        """Return the path of a probe below `probes/`, without suffix."""
        return "/".join(one for one in (subset, self.variant, f"seed{seed}") if one)


MINI_TOWERS = Towers()  # the embedded image tower and word vectors


def check_packages(settings: TowerSettings, what: str) -> None:
    """Raise UserError with the install command if a package of the towers is missing."""
    require(MINI_PACKAGES if _is_mini(settings) else PACKAGES, what, "mini")


def make_towers(store: Store, settings: TowerSettings) -> Towers:
    """Return the towers that the options name. Raises UserError if the embeddings do not exist."""
    if settings.text == WordTexts.name:
        if settings.tokenizer is not None:
            raise UserError("--tokenizer needs --text transformer")
        texts: TextSide = WordTexts()
    else:
        texts = TransformerTexts(settings.context, settings.width, settings.tokenizer)
    images = FrozenImages() if _is_mini(settings) else saved_images(store, _name(store, settings))
    return Towers(images, texts, settings.max_rows)


def _is_mini(settings: TowerSettings) -> bool:
    """Return whether the image vectors are the embedded tower's."""
    return (settings.embeddings or settings.model or MINI) in (MINI, EMBEDDED_TOWER)


def _name(store: Store, settings: TowerSettings) -> str:
    """Return the embeddings' name: of the option, or of the model."""
    if settings.embeddings:
        return settings.embeddings
    scorer = ScoreSettings(model=settings.model, device=settings.device)
    others = set(store.folders(EMBEDDINGS)) - {EMBEDDED_TOWER}
    if not others or scorer.name in others:
        return scorer.name
    return make_scorer(scorer).encoder.name  # a class of another package chooses its name

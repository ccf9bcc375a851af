"""The two sides of a probe, chosen by the options."""

from dataclasses import dataclass, field
from typing import Any

from capmix.errors import UserError
from capmix.mini.weights import MINI_PACKAGES
from capmix.models.registry import require
from capmix.probe.images import FrozenImages, saved_images
from capmix.probe.settings import MAX_ROWS, TowerSettings
from capmix.probe.texts import TextSide, WordTexts
from capmix.probe.transformer import TransformerTexts
from capmix.score.settings import ScoreSettings
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
        known = {"image_tower": self.images.name, "text_tower": self.texts.digest}
        known |= {"image_config": dict(self.images.config)} if self.images.config else {}
        known |= {"max_rows": self.max_rows} if self.max_rows != MAX_ROWS else {}
        return known | self.texts.config

    def place(self, subset: str, seed: int) -> str:
        """Return the path of a probe below `probes/`, without suffix."""
        return "/".join(one for one in (subset, self.variant, f"seed{seed}") if one)


MINI_TOWERS = Towers()  # the embedded image tower and word vectors


def check_packages(settings: TowerSettings, what: str) -> None:
    """Raise UserError with the install command if a package of the towers is missing."""
    is_embedded = FrozenImages(_name(settings) or FrozenImages().name).is_embedded
    require(MINI_PACKAGES if is_embedded else PACKAGES, what, "mini")


def make_towers(store: Store, settings: TowerSettings) -> Towers:
    """Return the towers that the options name. Raises UserError if the embeddings do not exist."""
    if settings.text == WordTexts.name:
        if settings.tokenizer is not None:
            raise UserError("--tokenizer needs --text transformer")
        return Towers(saved_images(store, _name(settings)), WordTexts(), settings.max_rows)
    texts = TransformerTexts(settings.context, settings.width, settings.tokenizer)
    return Towers(saved_images(store, _name(settings)), texts, settings.max_rows)


def _name(settings: TowerSettings) -> str | None:
    """Return the name of the embeddings; None for the embedded tower's."""
    name = settings.embeddings or (ScoreSettings(model=settings.model).name or None)
    return None if name in (None, "mini") else name

"""The text tower of any scorer, such as an open_clip model: `scorer:clip-l14`."""

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from capmix.engine.batches import batched
from capmix.models.tokens import Tokens
from capmix.score.scorers import make_scorer
from capmix.score.settings import ScoreSettings
from capmix.sentences.encoder import EncoderSettings

PREFIX = "scorer:"


class ScorerSentences:
    """Encodes sentences with the text tower of a scorer."""

    extra: ClassVar[str | None] = None
    packages: ClassVar[tuple[str, ...]] = ()  # the scorer names its own
    device: ClassVar[str] = "gpu"
    options: ClassVar[tuple[str, ...]] = ()

    def __init__(self, settings: EncoderSettings):
        model = settings.model.removeprefix(PREFIX)
        self._scorer = make_scorer(ScoreSettings(model=model, device=settings.device))
        self._batch = settings.batch
        self.settings: dict[str, Any] = dict(self._scorer.settings)
        self.provenance = getattr(self._scorer, "provenance", {})

    def tokenize(self, texts: Sequence[str]) -> Tokens:
        return self._scorer.tokenize(texts)

    def encode_tokens(self, inputs: Sequence[Any]) -> np.ndarray:
        some = batched(inputs, self._batch)
        return np.concatenate([self._scorer.encode_tokens(one) for one in some])

"""The embedded scorer under another name, without saved embeddings."""

from typing import ClassVar

from capmix.score.backends.mini import MiniScorer


class Unsaved(MiniScorer):
    name = "unsaved"
    keeps_embeddings: ClassVar[bool] = False

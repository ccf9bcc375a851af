"""`split`: the sentences of texts as texts of their own, without a model (as in DreamLIP).

The boundaries are those of sentencex: rules and lists of abbreviations by language.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

from capmix.caption.captioner import Caption
from capmix.models.device import provenance
from capmix.models.registry import require
from capmix.rewrite.rewriter import TextRequest
from capmix.rewrite.settings import RewriteSettings

LANGUAGE = "en"


class SplitRewriter:
    """Splits the texts of a sample into sentences, in order; each distinct text is split once."""

    extra: ClassVar[str | None] = "split"
    packages: ClassVar[tuple[str, ...]] = ("sentencex",)
    device: ClassVar[str] = "cpu"
    batch_size, workers = 512, 2

    def __init__(self, settings: RewriteSettings, source: str = ""):
        self._language = settings.language or LANGUAGE
        self.settings: dict[str, Any] = {
            "model": settings.model,
            "rules": self._language,
            "captions_per_image": settings.number,
        }
        self.provenance = provenance(("sentencex",), "cpu", self.batch_size)

    @staticmethod
    def check(settings: RewriteSettings) -> None:
        """Raise UserError if sentencex is missing."""
        require(SplitRewriter.packages, f"--model {settings.model}", SplitRewriter.extra)

    def prepare(self, request: TextRequest) -> list[str]:
        """Return all sentences of the texts."""
        from sentencex import segment

        distinct = dict.fromkeys(request.texts)
        found = (one.strip() for text in distinct for one in segment(self._language, text))
        return [one for one in found if one]

    def rewrite(
        self, prepared: Sequence[list[str]], requests: Sequence[TextRequest]
    ) -> list[list[Caption]]:
        """Return the sentences that `prepare` found."""
        return [[Caption(one) for one in sentences] for sentences in prepared]

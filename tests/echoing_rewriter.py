"""A rewriter that repeats its inputs, and records every request of this process."""

import threading
from collections.abc import Sequence
from typing import Any, ClassVar

from capmix.caption.captioner import Caption
from capmix.caption.sampling import caption_key
from capmix.engine.batches import SampleError
from capmix.rewrite.rewriter import TextRequest
from capmix.rewrite.settings import RewriteSettings

MODEL = "echoing_rewriter:EchoingRewriter"
KILLED_MODEL = "echoing_rewriter:KilledRewriter"


class EchoingRewriter:
    """Text k is the input k and the key of its draws; inputs with "poison" fail their batch."""

    device = "cpu"
    batch_size, workers = 4, 2
    asked: ClassVar[list[TextRequest]] = []
    batches: ClassVar[list[list[int]]] = []
    _lock = threading.Lock()

    def __init__(self, settings: RewriteSettings, source: str = ""):
        self._wanted = settings
        self.settings: dict[str, Any] = {"model": settings.model, **settings.sampling()}

    def prepare(self, request: TextRequest) -> str:
        with self._lock:
            self.asked.append(request)
        if any("refused" in text for text in request.texts):
            raise SampleError("refused", "the server refused the text")
        return request.name

    def rewrite(
        self, prepared: Sequence[str], requests: Sequence[TextRequest]
    ) -> list[list[Caption]]:
        self.batches.append([one.size for one in requests])
        if any("poison" in text for one in requests for text in one.texts):
            raise ValueError("poisoned")
        assert list(prepared) == [one.name for one in requests]
        return [self._texts(one) for one in requests]

    def _texts(self, request: TextRequest) -> list[Caption]:
        keys = [
            caption_key(self._wanted.seed, request.name, request.source, k)
            for k in range(len(request.texts))
        ]
        both = zip(request.texts, keys, strict=True)
        return [Caption("" if "silent" in t else f"{t} #{key % 1000}") for t, key in both]


class KilledError(BaseException):
    """Stands for the end of the process: nothing catches it."""


class KilledRewriter(EchoingRewriter):
    """The process ends in the batch after `left` batches."""

    left: ClassVar[int] = 10**9

    def rewrite(
        self, prepared: Sequence[str], requests: Sequence[TextRequest]
    ) -> list[list[Caption]]:
        if not self.left:
            raise KilledError
        KilledRewriter.left -= 1
        return super().rewrite(prepared, requests)

"""Rewrite with an OpenAI-compatible server: vLLM, SGLang, llama.cpp or a hosted API.

Requests, retries and bounds are those of the captioner (caption/backends/server.py). The message of
the user is the prompt, or the text itself.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

from capmix.caption.backends.server import ServerCaptioner
from capmix.caption.captioner import Caption
from capmix.engine.batches import SampleError
from capmix.prompts.escape import Escape
from capmix.prompts.truncation import by_pieces
from capmix.rewrite.rewriter import TEXTS, TextRequest
from capmix.rewrite.settings import RewriteSettings

TEST = "Answer with one word: yes"


class ServerRewriter(ServerCaptioner):
    """Sends texts to a server. Raises UserError if it is unreachable or lacks the model."""

    role: ClassVar[str] = "rewriter"
    prepares: ClassVar[str] = TEXTS

    def __init__(self, settings: RewriteSettings, source: str = ""):
        self._texts = settings
        super().__init__(settings.as_captioning(settings.model), source)
        for name in ("prompt", "max_side"):
            self.settings.pop(name, None)
        if not settings.templates:
            self.settings["max_input_tokens"] = settings.max_input_tokens

    def prepare(self, request: TextRequest) -> list[Caption]:  # type: ignore[override]
        """Request the K texts of one sample, those of equal inputs together.

        Raises SampleError if a request fails.
        """
        found: list[Caption] = []
        while len(found) < len(request.texts):
            first = len(found)
            text = request.texts[first]
            others = (k for k, one in enumerate(request.texts) if k > first and one != text)
            count = next(others, len(request.texts)) - first
            body = self._body_of(self._input(text), self._fields, count)
            found += self._asked(body, request.name, range(first, first + count))
        if not any(one.text for one in found):
            raise SampleError(
                "empty_answer",
                f"{self._url}: no text, or none after <think> (finish: {found[0].finish}); "
                "increase --max-tokens or disable the model's reasoning",
            )
        return found

    def rewrite(
        self, prepared: Sequence[list[Caption]], requests: Sequence[TextRequest]
    ) -> list[list[Caption]]:
        """Return the texts that `prepare` requested."""
        return list(prepared)

    def _input(self, text: str) -> str:
        if self._texts.templates:
            return text
        return Escape()(by_pieces(text, self._texts.max_input_tokens))

    def _test_body(self, fields: Sequence[str]) -> dict[str, Any]:
        return self._body_of(TEST, fields)

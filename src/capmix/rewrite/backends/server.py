"""Rewrite with an OpenAI-compatible server: vLLM, SGLang, llama.cpp or a hosted API.

Requests, retries and bounds are those of the captioner (caption/backends/chat_client.py). The
message of the user is the prompt, or the text itself.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

from capmix.caption.backends.chat_client import ChatClient
from capmix.caption.captioner import Caption
from capmix.prompts.escape import Escape
from capmix.prompts.truncation import by_pieces
from capmix.rewrite.rewriter import PREPARES_TEXTS, TextRequest
from capmix.rewrite.settings import RewriteSettings

TEST = "Answer with one word: yes"


class ServerRewriter:
    """Sends texts to a server. Raises UserError if it is unreachable or lacks the model."""

    extra: ClassVar[str | None] = None
    packages: ClassVar[tuple[str, ...]] = ()
    device: ClassVar[str] = "remote"
    prepares: ClassVar[str] = PREPARES_TEXTS

    def __init__(self, settings: RewriteSettings, source: str = ""):
        self._wanted = settings
        shared = settings.as_captioning(settings.model)
        self._client = ChatClient(shared, source, "rewriter", TEST)
        self.workers = self.batch_size = settings.concurrency
        self.settings = self._client.settings()
        if not settings.templates:
            self.settings["max_input_tokens"] = settings.max_input_tokens
        self.provenance: dict[str, Any] = {}

    def prepare(self, request: TextRequest) -> list[Caption]:
        """Request the K texts of one sample, those of equal inputs together.

        Raises SampleError if a request fails.
        """
        found: list[Caption] = []
        while len(found) < len(request.texts):
            first = len(found)
            text = request.texts[first]
            others = (k for k, one in enumerate(request.texts) if k > first and one != text)
            end = next(others, len(request.texts))
            found += self._client.texts(self._input(text), request.name, range(first, end))
        self._client.check_any(found)
        return found

    def rewrite(
        self, prepared: Sequence[list[Caption]], requests: Sequence[TextRequest]
    ) -> list[list[Caption]]:
        """Return the texts that `prepare` requested."""
        return list(prepared)

    def _input(self, text: str) -> str:
        if self._wanted.templates:
            return text
        return Escape()(by_pieces(text, self._wanted.max_input_tokens))

"""The rewriter protocol: models that write texts from texts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from capmix.caption.captioner import Caption

# What `prepare` returns, as the attribute `prepares`.
PREPARES_INPUTS, PREPARES_REQUESTS, PREPARES_TEXTS = "inputs", "requests", "texts"


@dataclass(frozen=True, slots=True)
class TextRequest:
    """What to rewrite for one sample.

    `texts` are K inputs, one for each output: a prompt if there is a template, else a text of the
    pool. `name` seeds the random draws: the sample's uid, or a digest of its image if the pool has
    no uids of its own. `source` is the name of the source that is written. `language` is the
    language of the texts (ISO 639-1) if the rewriter translates, else empty.
    """

    name: str
    texts: tuple[str, ...]
    source: str
    language: str = ""

    @property
    def size(self) -> int:
        """Number of characters: samples of similar size share a batch."""
        return max(map(len, self.texts), default=0)


class Rewriter(Protocol):
    """A model that writes texts from texts.

    Text k depends only on the input k, (seed, uid, source, k) and the settings. `settings` contains
    the model, a digest of its weights and every sampling setting. It is written to the marker of
    each part and determines whether the part is up to date.

    `batch_size` samples are rewritten at once. `workers` threads run `prepare` ahead of the model.

    Optional attributes: `truncate(text, tokens)` and `special_tokens`, for templates (prompts/);
    `translates`, true if the model is trained to translate and needs no prompt (default False);
    `provenance`; `prepares`, what `prepare` returns: inputs of the model (PREPARES_INPUTS, the
    default), which are sorted by length; requests that have begun (PREPARES_REQUESTS), which are
    collected in order; or the K texts (PREPARES_TEXTS), which are kept at once and not passed to
    `rewrite`.
    """

    settings: dict[str, Any]
    batch_size: int
    workers: int

    def prepare(self, request: TextRequest) -> Any:
        """Tokenize the inputs of one sample, or call a server. Raises SampleError."""
        ...

    def rewrite(
        self, prepared: Sequence[Any], requests: Sequence[TextRequest]
    ) -> list[list[Caption]]:
        """Return K texts for each of N samples. A failing batch is retried in halves.

        Texts after the K-th are not written, and their samples are counted.
        """
        ...

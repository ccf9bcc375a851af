"""Captions of single samples in a partial part (engine/partial.py), for the run that resumes it.

For captions of images and for rewritten texts, whose `image` is a digest of their inputs.

An entry is used only for a sample with the same key, uid and image bytes. Entries with the reason
HUNG_BATCH are about images in a batch that hung until its process was ended: these are captioned
one by one, so that the image that hangs is found.
"""

import logging
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import NamedTuple

from pydantic import TypeAdapter, ValidationError

from capmix.caption.captioner import Caption
from capmix.engine.batches import MODEL_HUNG, Batches, SampleError
from capmix.engine.redo import may_pass
from capmix.engine.stage import PartWriter
from capmix.settings.counted import counted

log = logging.getLogger(__name__)

HUNG_BATCH = "hung_batch"
# Raised by image processors, tokenizers and templates for unusual images and texts. They fail one
# sample; others end the run.
SAMPLE_ERRORS = (TypeError, ValueError, ArithmeticError, LookupError, AttributeError, RuntimeError)


class CaptionEntry(NamedTuple):
    """All captions of an image, as (text, finish), or the reason and detail of its failure.

    `image` is the first half of the image's sha256, in hex digits.
    """

    key: str
    uid: str
    image: str
    captions: list[tuple[str, str]] | None = None
    reason: str = ""
    detail: str = ""

    def result(self, first: int) -> list[Caption] | SampleError:
        """Return the captions from number `first` on, or the failure."""
        if self.captions is None:
            return SampleError(self.reason, self.detail)
        return [Caption(text, finish) for text, finish in self.captions[first:]]

    @property
    def is_usable(self) -> bool:
        return self.captions is not None or bool(self.reason)

    @property
    def is_done(self) -> bool:
        """Whether it is a result; otherwise the image must be captioned alone."""
        return self.is_usable and self.reason != HUNG_BATCH


ENTRY = TypeAdapter(CaptionEntry)


def captions_entry(key: str, uid: str, image: str, captions: Sequence[Caption]) -> CaptionEntry:
    """Return the entry of a captioned image."""
    return CaptionEntry(key, uid, image, [(_encodable(c.text or ""), c.finish) for c in captions])


def failure_entry(key: str, uid: str, image: str, reason: str, detail: str) -> CaptionEntry:
    """Return the entry of an image that failed."""
    return CaptionEntry(key, uid, image, None, reason, _encodable(detail))


def of_sample_error(error: Exception) -> SampleError:
    """Return one of SAMPLE_ERRORS as the failure of its sample."""
    return SampleError("model_error", f"{type(error).__name__}: {error}")


def note_hang(out: PartWriter, batches: Batches, hung: Iterable[tuple[str, str, str]]) -> None:
    """Note a batch that hung in the partial part; the process is about to exit.

    `hung` has the key, the uid and the digest of each sample.
    """
    names = list(hung)
    reason = HUNG_BATCH if len(names) > 1 else MODEL_HUNG
    detail = f"no answer within {2 * batches.seconds:g} s (--batch-timeout); process ended"
    out.partial.add([failure_entry(*one, reason, detail) for one in names])
    out.partial.close()


def earlier_entries(out: PartWriter, shard: str, noun: str) -> dict[str, CaptionEntry]:
    """Return the usable entries of a partial part, by key, and log how many are results.

    `shard` names the work in the log, `noun` a sample.

    Failures that may pass are left out if failed samples are retried, except for images that hung:
    they would hang again and end the process each time.
    """
    found: dict[str, CaptionEntry] = {}
    for value in out.partial.entries():
        with suppress(ValidationError):
            one = ENTRY.validate_python(value)
            is_retried = out.is_retry and one.captions is None and may_pass([one.reason])
            if one.is_usable and not (is_retried and one.reason not in (MODEL_HUNG, HUNG_BATCH)):
                before = found.get(one.key)
                if before is None or _rank(before) <= _rank(one):
                    found[one.key] = one
    if done := sum(one.is_done for one in found.values()):
        log.info("%s resumes after %s", shard, counted(done, noun))
    return found


def _rank(entry: CaptionEntry) -> int:
    return (entry.captions is not None) + entry.is_done


def _encodable(text: str) -> str:
    """Replace lone surrogates, which UTF-8 cannot encode, as caption_rows does."""
    return text.encode("utf-8", "replace").decode()

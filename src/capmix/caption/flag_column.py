"""Compute the flags of a column of captions: the same as caption_flags, but much faster.

Nearly all captions have no flag. A vectorised search over the column finds the captions that may
have one, and caption_flags is called only for these. False positives of the search only cost time.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from capmix.caption.flags import BOILERPLATE, LONGEST_LOOP, REFUSAL, caption_flags
from capmix.caption.personal import EMAIL_HINT, PHONE_HINT

BYTES_AT_ONCE = 1 << 20  # of text per slice: intermediate results stay in the CPU cache
TYPE = pa.list_(pa.string())
PHRASES = f"{BOILERPLATE.pattern}|{REFUSAL.pattern}"
PERSONAL = f"{EMAIL_HINT}|{PHONE_HINT}"
NO_WORD = re.compile(r"[^\w\x00-\x7f]")
# Letters that match an ASCII letter in a case-insensitive pattern but are not lower-cased to it.
CASE_VARIANTS = {"\u017f": "s", "\u0131": "i"}
IS_WORD = np.array([byte >= 0x80 or chr(byte).isalnum() or byte == ord("_") for byte in range(256)])
FIRST_BYTES = np.array([(1 << 8 * count) - 1 for count in range(9)], np.uint64)
ODD = np.array(
    [0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F], np.uint64
)  # odd multipliers that spread small numbers


@dataclass(frozen=True)
class _Settings:
    """The arguments of caption_flags other than the text."""

    finish: str
    prompt: str | None
    language: str | None

    def flags(self, text: str) -> list[str]:
        return caption_flags(text, self.finish, self.prompt, self.language)


def flag_column(
    texts: pa.Array, finish: str, prompt: str | None = None, language: str | None = None
) -> pa.Array:
    """Return `caption_flags(text, finish, prompt, language)` for each text, as list<string>.

    `texts` is a string array. Nulls stay null.
    """
    settings = _Settings(finish, prompt, language)
    pieces = [_flags(piece, settings) for piece in _pieces(texts)]
    return pa.concat_arrays(pieces) if pieces else pa.array([], TYPE)


def _pieces(texts: pa.Array) -> Iterator[pa.Array]:
    """Yield slices of up to BYTES_AT_ONCE bytes; a longer text is a slice of its own."""
    bounds = _offsets(texts)
    start = 0
    while start < len(texts):
        last = int(bounds[start]) + BYTES_AT_ONCE
        end = max(start + 1, int(np.searchsorted(bounds, last, side="right")) - 1)
        yield texts[start:end]
        start = end


def _flags(texts: pa.Array, settings: _Settings) -> pa.Array:
    is_there = texts.is_valid().to_numpy(zero_copy_only=False)
    suspects = np.flatnonzero(_may_have_flags(texts, settings) & is_there)
    found = [settings.flags(text) for text in texts.take(pa.array(suspects)).to_pylist()]
    counts = np.zeros(len(texts) + 1, np.int32)
    counts[suspects + 1] = [len(flags) for flags in found]
    values = pa.array([name for flags in found for name in flags], pa.string())
    offsets = pa.array(np.cumsum(counts, dtype=np.int32))
    return pa.ListArray.from_arrays(offsets, values, type=TYPE, mask=texts.is_null())


def _may_have_flags(texts: pa.Array, settings: _Settings) -> np.ndarray:
    """Return bool (texts,): True for each text with a flag, and for some without."""
    if settings.finish != "stop" or settings.language:
        return np.ones(len(texts), bool)
    lowered = _lowered(texts)
    suspects = pc.match_substring_regex(lowered, PHRASES)
    personal = pc.match_substring_regex(texts.fill_null(""), PERSONAL)
    suspects = pc.or_(suspects, personal)
    if settings.prompt:
        prompt = _plain(settings.prompt.strip())
        suspects = pc.or_(suspects, pc.starts_with(lowered, prompt))
    found: np.ndarray = suspects.to_numpy(zero_copy_only=False)
    found = found | _have_no_word_or_loop(lowered)
    return found


def _lowered(texts: pa.Array) -> pa.Array:
    """Lower-case the texts so that each non-ASCII byte is part of a word; null becomes ""."""
    texts = texts.fill_null("")
    is_other = pc.invert(pc.string_is_ascii(texts))
    others = pa.array([_plain(text) for text in texts.filter(is_other).to_pylist()], texts.type)
    return pc.replace_with_mask(pc.ascii_lower(texts), is_other, others)


def _plain(text: str) -> str:
    """Lower-case one text: equal words stay equal, phrases become ASCII, other symbols spaces."""
    text = text.lower().replace("\u2019", "'")
    for letter, ascii_letter in CASE_VARIANTS.items():
        text = text.replace(letter, ascii_letter)
    return NO_WORD.sub(" ", text)


def _have_no_word_or_loop(texts: pa.Array) -> np.ndarray:
    """Return bool (texts,): whether a text has no word, or may have a loop.

    The key of a word combines the index of its text, its length and its first eight bytes. Equal
    words of a text have equal keys, so a loop of words is a loop of keys. Distinct words can share
    a key, so some of the loops found are false positives.
    """
    data, bounds = _joined(texts)
    is_word = IS_WORD.take(data)
    edges = np.flatnonzero(is_word[1:] != is_word[:-1]) + 1
    starts, lengths = edges[::2], edges[1::2] - edges[::2]
    firsts = np.searchsorted(starts, bounds)  # index of the first word of each text
    suspects: np.ndarray = np.diff(firsts) == 0
    text_of = np.repeat(np.arange(len(texts)), np.diff(firsts))
    eights = np.ndarray(
        len(data) - 7, "<u8", data, strides=(1,)
    )  # the eight bytes from each position
    keys = eights[starts] & FIRST_BYTES[np.minimum(lengths, 8)]
    keys = keys + lengths.astype(np.uint64) * ODD[0] + text_of.astype(np.uint64) * ODD[1]
    for length in range(1, LONGEST_LOOP + 1):
        same = np.flatnonzero(keys[length:] == keys[:-length])
        run = 2 * length - 1
        is_loop = same[run:] - same[:-run] == run
        suspects[text_of[same[:-run][is_loop]]] = True
    return suspects


def _joined(texts: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Join the texts. Returns their bytes (uint8) and their starts (int64, texts + 1).

    One non-word byte separates the texts; eight precede the first and eight follow the last. The
    last start is where a further text would begin.
    """
    one = pa.ListArray.from_arrays(pa.array([0, len(texts)], pa.int32()), texts)
    joined = pc.binary_join(one, "\n")
    start, end = _offsets(joined)
    data = np.zeros(end - start + 16, np.uint8)
    data[8:-8] = np.frombuffer(joined.buffers()[2] or b"", np.uint8)[start:end]
    bounds = _offsets(texts).astype(np.int64)
    return data, bounds - bounds[0] + np.arange(8, len(bounds) + 8)


def _offsets(texts: pa.Array) -> np.ndarray:
    """Return int32 (texts + 1,): where each text begins and ends in the column's buffer."""
    buffer = texts.buffers()[1]
    if buffer is None or not len(texts):
        return np.zeros(1, np.int32)
    return np.frombuffer(buffer, np.int32)[texts.offset : texts.offset + len(texts) + 1]

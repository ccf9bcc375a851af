"""Tokenizing of texts for open_clip models, compared with open_clip's own tokenizer.

    python benchmarks/tokens.py [TEXTS]

Tokenizes TEXTS generated web texts (default: 1 million; see tests/web_texts.py) with both and
prints how many have equal ids and an equal `truncated`. Then prints texts/s, as CPU time of the
process and as wall time, for short captions and for English alt-texts in which a quarter of the
words is in no vocabulary. The ways alternate; each round has new texts, and medians are shown:

- open_clip: its tokenizer for the ids, and its `encode` for `truncated`;
- capmix with one thread, and with two.

At last prints the number of words that open_clip's cache has kept.
"""

import copy
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path

import numpy as np
from open_clip.tokenizer import SimpleTokenizer

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from web_texts import alt_texts, captions, web_texts

from capmix.engine.batches import batched
from capmix.models.open_clip_tokens import open_clip_tokenizer
from capmix.models.tokens import Tokens

CHUNK = 2048
CHUNKS = 8
ROUNDS = 5
Cost = tuple[float, float]  # seconds of CPU and of wall time


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    _compare_ids(count)
    plain = SimpleTokenizer()
    ours = open_clip_tokenizer(SimpleTokenizer())
    with ThreadPoolExecutor(2) as threads:
        ways: dict[str, Callable[[list[list[str]]], object]] = {
            "open_clip, twice": lambda chunks: [_plain(plain, texts) for texts in chunks],
            "capmix, 1 thread": lambda chunks: [ours(texts) for texts in chunks],
            "capmix, 2 threads": lambda chunks: list(threads.map(ours, chunks)),
        }
        for name, draw in (("short captions", captions), ("alt-texts, unseen words", alt_texts)):
            _time(name, draw, ways)
    print(f"words in open_clip's cache: {len(plain.cache):,}")


def _compare_ids(count: int, seed: int = 0) -> None:
    """Print how many texts have the ids and the `truncated` of open_clip."""
    plain = SimpleTokenizer()
    ours = open_clip_tokenizer(plain)
    padding = copy.copy(plain)
    ids = flags = 0
    for texts in batched(web_texts(count, seed), CHUNK):
        plain.cache = {token: token for token in ("<start_of_text>", "<end_of_text>")}
        encoded = {text: plain.encode(text) for text in texts}
        padding.encode = encoded.__getitem__  # open_clip truncates and pads the same ids
        found = ours(texts)
        equal = (padding(texts).numpy() == np.stack(found.inputs)).all(axis=1)
        for text, is_equal, truncated in zip(texts, equal, found.truncated, strict=True):
            if not is_equal:
                print(f"other ids: {text!a}")
            flags += truncated == (len(encoded[text]) + 2 > plain.context_length)
        ids += int(equal.sum())
    print(f"{count:,} texts: {ids:,} with equal ids, {flags:,} with equal `truncated`")


def _plain(tokenizer: SimpleTokenizer, texts: Sequence[str]) -> Tokens:
    limit = tokenizer.context_length
    too_long = [len(tokenizer.encode(text)) + 2 > limit for text in texts]
    return Tokens(list(tokenizer(texts).numpy()), too_long)


def _time(
    name: str,
    draw: Callable[[int, int], list[str]],
    ways: dict[str, Callable[[list[list[str]]], object]],
) -> None:
    costs: dict[str, list[Cost]] = {way: [] for way in ways}
    for number in range(ROUNDS + 1):
        chunks = list(batched(draw(CHUNK * CHUNKS, number), CHUNK))
        for way, run in ways.items():
            started = time.process_time(), time.perf_counter()
            run(chunks)
            ended = time.process_time(), time.perf_counter()
            if number:  # the first round warms up
                costs[way].append((ended[0] - started[0], ended[1] - started[1]))
    texts = CHUNK * CHUNKS
    words = statistics.mean(len(text.split()) for text in chain.from_iterable(chunks))
    print(f"\n{name}, {words:.1f} words on average: texts/s of CPU time, and of wall time")
    medians = {
        way: [statistics.median(column) for column in zip(*found, strict=True)]
        for way, found in costs.items()
    }
    base = medians["open_clip, twice"]
    for way, (cpu, wall) in medians.items():
        print(
            f"  {way:<18}{texts / cpu:>9,.0f}{base[0] / cpu:>7.1f} x"
            f"{texts / wall:>11,.0f}{base[1] / wall:>7.1f} x"
        )


if __name__ == "__main__":
    main()

"""The common part of the fuzzers: a seed corpus in a temporary directory, libFuzzer's options."""

import argparse
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import atheris

FOUND = Path(__file__).parent / "found"
LIMITS = ("-rss_limit_mb=2048", "-timeout=20", "-print_final_stats=1")


def fuzz(
    about: str | None,
    check: Callable[[bytes], None],
    seeds: Iterable[bytes],
    words: Iterable[str] = (),
    max_bytes: int = 4096,
    **setup: Any,
) -> None:
    """Run `check` on mutations of `seeds` until it raises an error or the time is up.

    `words` is libFuzzer's dictionary; `setup` is passed to atheris.Setup.
    """
    parser = argparse.ArgumentParser(
        description=about, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seconds", type=int, default=600, help="time limit (default: 600)")
    parser.add_argument("files", nargs="*", help="run these inputs once instead of fuzzing")
    arguments = parser.parse_args()
    FOUND.mkdir(exist_ok=True)
    with TemporaryDirectory() as scratch:
        options = [*LIMITS, f"-artifact_prefix={FOUND}/{Path(sys.argv[0]).stem}-"]
        options += arguments.files or _corpus(Path(scratch), seeds, words)
        options += [f"-max_total_time={arguments.seconds}", f"-max_len={max_bytes}"]
        child = os.fork()  # libFuzzer exits its process without removing the corpus
        if child == 0:
            atheris.Setup([sys.argv[0], *options], check, **setup)
            atheris.Fuzz()
        _, status = os.waitpid(child, 0)
    sys.exit(os.waitstatus_to_exitcode(status))


def _corpus(scratch: Path, seeds: Iterable[bytes], words: Iterable[str]) -> list[str]:
    corpus, dictionary = scratch / "corpus", scratch / "words"
    corpus.mkdir()
    for number, seed in enumerate(seeds):
        (corpus / f"{number:03d}").write_bytes(seed)
    quoted = [word.replace("\\", "\\\\").replace('"', '\\"') for word in words]
    dictionary.write_text("".join(f'"{word}"\n' for word in quoted), "ascii")
    return [str(corpus), *([f"-dict={dictionary}"] if quoted else [])]

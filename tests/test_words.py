"""Phrases that capmix's English avoids, in everything that a person reads.

A phrase is here because it was written before and reads as translated. The right-hand side is what
to write instead.
"""

import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
KINDS = {".py", ".md", ".html", ".js", ".css", ".yaml", ".yml", ".sh", ".toml", ".cff", ".ipynb"}
FOLDERS = ("src", "tests", "docs", "tools", "benchmarks", "examples", "fuzz", "packages", ".github")
SINGLE = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "Makefile", "Dockerfile")
SKIPPED = {"tests/test_words.py"}

PHRASES = {
    # Programs and files do not speak, know or wish.
    r"\b(is|are|was|were) told\b": "is given, is reported",
    r"\b(marker|file|report|page|program) (tells|knows|speaks)\b": "records, shows",
    r"\bspeaks? of\b": "is about",
    r"\bline\s+(on\s+standard\s+error\s+)?counts\b": "a message reports how many",
    r"\bhears nothing of\b": "is not interrupted by",
    r"\bnobody has to believe\b": "untrusted",
    r"\btaken for hostile\b": "treated as untrusted",
    # Things have names.
    r"\bwhat (is|was|are) asked for\b": "the request, the requested ...",
    r"\bthat (is|are) asked for\b": "requested",
    r"\bwhat comes of (it|them)\b": "the output",
    r"\bwhat (lies|stands) there\b": "existing files",
    r"\b(a file|something|what) that lies there\b": "an existing file",
    r"\ball that (it|they) can do\b": "(name it)",
    r"\bmodels that people use\b": "real models",
    r"\btexts that people use\b": "captions",
    # Resuming, repeating, overwriting.
    r"\bgoes? on (from|where|after) (here|there|it|the)\b": "resumes",
    r"\b(made|written|computed|built) anew\b": "recomputed, overwritten",
    r"\bmake again\b": "overwrite, recompute",
    r"\bonce more\b": "again, rerun",
    r"\bwritten again (since|meanwhile)\b": "changed since",
    r"\bindexed again meanwhile\b": "the index has changed",
    r"\bdone before\b": "already done",
    r"\b(broke|broken|breaks?) off\b": "failed, truncated, interrupted",
    r"\bmend(s|ed)?\b": "fix",
    r"\b(end|ends|ended) so\b": "exits with",
    # Word order, and endings without a noun.
    r"\b(metadata|references|scores|captions|raw|[CG]PU|disks?|directories) alone\b": "only ...",
    r"\bfor the default alone\b": "only for the default",
    r"\bone a (GPU|shard|sample|file|seed|line)\b": "one per ...",
    r"\b(bytes|rows|captions|texts) an? (sample|row|image)\b": "... per ...",
    r"\bas many as there is room\b": "as many as fit",
    r"\bis there room\b": "is out of resources",
    r"\bdo(es)? not fit into memory\b": "exceeds the memory, out of memory",
    r"\bas (it|they) lie\b": "unchanged",
    r"\bas people have them\b": "realistic",
    r"\bas where\b": "for example if",
    r"\b(is|are|be) not there\b": "not found, missing",
    r"\bis there already\b": "already exists",
    r"\b(lies|lie|lying) (there|below|in a)\b": "is in, exists",
    r"\b(cannot|can|to) be had\b": "is available",
    r"\bin whatever\b": "in any",
    r"\bnot worth (their|its) while\b": "not needed",
    r"\bat work (there|here|on it)\b": "active",
    # Words of the field.
    r"\bthe likeliest\b": "greedy decoding, most likely",
    r"\bdifferent (words|texts|trigrams|n-grams|nouns)\b": "distinct ...",
    r"\bwhat others (computed|made)\b": "precomputed",
    r"\bother settings made\b": "different settings",
    r"\bdrawn by chance\b": "drawn at random",
    r"\btime-outs?\b": "timeout",
    r"\btold apart\b": "distinguished",
    r"\bof one's own\b": "your own, custom",
    r"\b(files|folders|recipes|edits) of (yours|others)\b": "your files, other files",
    r"\bin the(ir)? true architectures?\b": "original architecture",
    r"\bS3 of AWS\b": "Amazon S3",
    r"\btelephones?\b": "phone",
    r"\bmade-up\b": "generated",
    r"\b(plainly|honestly)\b": "(leave out)",
    r"\band the like\b": "and similar ...",
    # Numbers.
    r"\d %(?=$|[].,;:|)\"]| (of|or|and|interval|raw)\b)": "30%",
}  # fmt: skip


@cache
def texts() -> dict[str, str]:
    """Return the texts by path."""
    found = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*"))]
    found = [path for path in found if path.suffix in KINDS and path.is_file()]
    found += [ROOT / name for name in SINGLE]
    names = {str(path.relative_to(ROOT)): path for path in found}
    return {
        name: path.read_text("utf-8", errors="replace")
        for name, path in names.items()
        if name not in SKIPPED and "/data/" not in name
    }


@pytest.mark.parametrize("phrase", PHRASES)
def test_a_phrase_is_not_used(phrase: str) -> None:
    pattern = re.compile(phrase, re.IGNORECASE)
    found = []
    for name, text in texts().items():
        for match in pattern.finditer(text):
            line = text.count("\n", 0, match.start()) + 1
            found.append(f"{name}:{line}: {match[0]!r}")
    assert not found, f"write instead: {PHRASES[phrase]}\n" + "\n".join(found)

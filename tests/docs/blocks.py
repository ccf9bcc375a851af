"""The code blocks of the documentation: what they are, where they are, and how they are run.

A fence has a language. Its blocks are run in the order of the page, in one folder per page (see
test_blocks.py), and two comments on the line before a fence change that:

    <!-- not run: needs a GPU -->    a reason of REASONS; the block is parsed only
    <!-- exits 2 -->                 the block is meant to fail with this exit code

A yaml or toml block, and a python block, whose first line is `# name.yaml` is a file: it is saved
under this name. Every yaml block is a file. Directives of Sphinx (```{toctree}) are no code.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
PAGES = sorted([*(ROOT / "docs").rglob("*.md"), ROOT / "README.md"])
LANGUAGES = ("sh", "python", "text", "yaml", "toml", "json", "bibtex")
REASONS = (
    "needs a GPU",
    "needs the Hub",
    "needs S3",
    "needs a cluster",
    "needs edits in the browser",
    "needs your own files",
    "takes days",
    "CI runs it",
)
FILE = re.compile(r"# ([\w.-]+(?:/[\w.-]+)*\.(?:yaml|yml|py|toml))\s*")
OPENED = re.compile(r"( *)(`{3,}|~{3,})\s*(.*)")
COMMENT = re.compile(r"\s*<!--\s*(not run|exits)\b(.*?)-->\s*")
ITEM = re.compile(r" *(?:[-*+]|\d+[.)]) +\S")
CONTAINER = re.compile(r" *(?:!!!|\?\?\?|===|:::)")


@dataclass(frozen=True)
class Block:
    """A fenced block; `line` is that of its first line of text."""

    page: Path
    line: int
    language: str
    text: str
    reason: str | None = None
    code: int = 0
    """The exit code that running it gives."""

    @property
    def file(self) -> str | None:
        """The name under which it is saved instead of being run."""
        found = FILE.fullmatch(self.text.partition("\n")[0])
        return found.group(1) if found and self.language in ("yaml", "toml", "python") else None

    @property
    def is_run(self) -> bool:
        """Whether its text is handed to a shell or to Python."""
        runs = self.language in ("sh", "python") and self.file is None
        return runs and self.reason is None

    @property
    def where(self) -> str:
        """Such as docs/python.md:9."""
        return f"{name_of(self.page)}:{self.line}"


@dataclass
class Page:
    """The blocks of a page, and where it does not keep the rules above."""

    path: Path
    blocks: list[Block] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


def name_of(page: Path) -> str:
    """The path from the root of the repository."""
    return page.relative_to(ROOT).as_posix() if page.is_relative_to(ROOT) else str(page)


def read_page(path: Path) -> Page:
    """Parse a page."""
    page = Page(path)
    lines = path.read_text("utf-8").splitlines()
    at = 0
    is_listed = False  # in a list or another container, whose text may be indented
    before = ""
    while at < len(lines):
        line = lines[at]
        opened = OPENED.fullmatch(line)
        if opened and "`" not in opened.group(3):
            end = _closing(lines, at, opened.group(2))
            _add(page, lines, at, end, opened)
            before, at = "", end + 1
            continue
        number = at + 1
        if COMMENT.fullmatch(line) and not _is_fence(lines, at + 1):
            page.faults.append(f"{number}: a comment about a block, and no block on the next line")
        starts = ITEM.match(line) or CONTAINER.match(line)
        if starts:
            is_listed = True
        elif line.strip() and not line.startswith(" ") and not before.strip():
            is_listed = False
        indent = len(line) - len(line.lstrip(" "))
        deepest = 8 if is_listed else 4
        if line.startswith("\t") or (
            line.strip() and indent >= deepest and not before.strip() and not starts
        ):
            page.faults.append(f"{number}: indented code, where a fence with a language belongs")
        if line.strip() or not line:
            before = line
        at += 1
    return page


def _is_fence(lines: list[str], at: int) -> bool:
    return at < len(lines) and OPENED.fullmatch(lines[at]) is not None


def _closing(lines: list[str], at: int, fence: str) -> int:
    for number in range(at + 1, len(lines)):
        found = lines[number].strip()
        if found.startswith(fence) and not found.strip(fence[0]):
            return number
    return len(lines)


def _add(page: Page, lines: list[str], at: int, end: int, opened: re.Match[str]) -> None:
    indent, _, language = opened.groups()
    language = language.strip()
    if language.startswith("{"):
        return
    number = at + 1
    if end == len(lines):
        page.faults.append(f"{number}: a fence that is not closed")
    if language not in LANGUAGES:
        known = ", ".join(LANGUAGES)
        page.faults.append(f"{number}: language {language!r}, which is none of {known}")
    text = "".join(f"{line.removeprefix(indent)}\n" for line in lines[at + 1 : end])
    reason, code = None, 0
    comment = COMMENT.fullmatch(lines[at - 1]) if at else None
    if comment and comment.group(1) == "exits":
        if not comment.group(2).strip().isdigit():
            page.faults.append(f"{number - 1}: expected a number, as in <!-- exits 2 -->")
        else:
            code = int(comment.group(2))
    elif comment:
        reason = comment.group(2).strip().removeprefix(":").strip()
        if reason not in REASONS:
            known = ", ".join(REASONS)
            page.faults.append(f"{number - 1}: not run: {reason!r}, which is none of {known}")
    block = Block(page.path, number + 1, language, text, reason, code)
    if language == "yaml" and block.file is None:
        page.faults.append(f"{number}: yaml whose first line is not `# name.yaml`")
    page.blocks.append(block)


def all_blocks() -> Iterator[Block]:
    """Of all pages."""
    for path in PAGES:
        yield from read_page(path).blocks

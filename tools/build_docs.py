"""Write what docs/ has from the settings: the options of commands and the keys of pipeline files.

python tools/build_docs.py          writes the pages
"""

from pathlib import Path

from capmix.cli.reference import pages, with_options
from capmix.pipeline.reference import with_keys

DOCS = Path(__file__).parent.parent / "docs"


def main() -> None:
    for name, path in pages(DOCS).items():
        page = path.read_text("utf-8")
        _write(path, page, with_options(page, name))
    path = DOCS / "reference/pipeline.md"
    page = path.read_text("utf-8")
    _write(path, page, with_keys(page))


def _write(path: Path, page: str, written: str) -> None:
    if written != page:
        path.write_text(written, "utf-8")
        print(path)


if __name__ == "__main__":
    main()

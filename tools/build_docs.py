"""Write the tables of options in docs/commands from the settings.

python tools/build_docs.py          writes the pages
"""

from pathlib import Path

from capmix.cli.reference import pages, with_options

DOCS = Path(__file__).parent.parent / "docs"


def main() -> None:
    for name, path in pages(DOCS).items():
        page = path.read_text("utf-8")
        written = with_options(page, name)
        if written != page:
            path.write_text(written, "utf-8")
            print(path)


if __name__ == "__main__":
    main()

"""Sphinx configuration of the documentation site: `make docs`."""

import re
from pathlib import Path, PurePosixPath
from posixpath import normpath

from sphinx.application import Sphinx

ROOT = Path(__file__).parent.parent
REPOSITORY = "https://github.com/capmix/capmix"

project = "capmix"
copyright = "capmix contributors, Apache-2.0"
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
source_suffix = {".md": "markdown"}
html_theme = "furo"
html_title = "capmix"
html_logo = html_favicon = "images/logo.svg"
html_static_path = ["stylesheets"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_copy_source = False
html_theme_options = {
    "source_repository": REPOSITORY,
    "source_branch": "main",
    "source_directory": "docs/",
    "light_css_variables": {"color-brand-primary": "#00695c", "color-brand-content": "#00695c"},
    "dark_css_variables": {"color-brand-primary": "#80cbc4", "color-brand-content": "#80cbc4"},
}
myst_heading_anchors = 4
myst_enable_extensions = ["attrs_inline", "colon_fence"]
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_preserve_defaults = True
napoleon_custom_sections = [("Options", "params_style")]
default_role = "code"  # single backquotes in docstrings
copybutton_exclude = ".linenos, .gp, .go"

LINK = re.compile(r"(\]\()([^)\s:#]+)((?:#[^)\s]*)?\))")
FENCE = re.compile(r"^```.*?^```$", re.M | re.S)


def link_to_repository(app: Sphinx, docname: str, source: list[str]) -> None:
    """Point links that leave docs/ to the repository, where these files are shown."""
    folder = PurePosixPath("docs", docname).parent

    def replaced(match: re.Match[str]) -> str:
        target = normpath(str(folder / match[2]))
        if target.startswith("docs/"):
            return match[0]
        kind = "tree" if (ROOT / target).is_dir() else "blob"
        return f"{match[1]}{REPOSITORY}/{kind}/main/{target}{match[3]}"

    text = source[0]
    parts, fences = FENCE.split(text), FENCE.findall(text)
    linked = [LINK.sub(replaced, part) for part in parts]
    source[0] = "".join(a + b for a, b in zip(linked, [*fences, ""], strict=True))


def setup(app: Sphinx) -> None:
    app.connect("source-read", link_to_repository)

"""Untrusted names and texts on the card of an exported dataset."""

import re

import yaml
from markdown_it import MarkdownIt

from capmix.export.card import dataset_card
from capmix.mix.mix import Summary

HOSTILE = (
    "a | b\n---\n# head\n```\n`x` <script>alert(1)</script> [link](http://x) ![i](http://x) **b** "
    "&lt; \x1b[31m \u202e ~~s~~ ````yaml trailing\\"
)


def page(text: str) -> str:
    summary = Summary("s", 10, 5, {text: 3}, {text: 0.5}, {text: 0.2}, 0.5, "", {text: 2})
    recipe = {"name": text, "about": text, "clauses": [{"source": text, "where": text}]}
    return dataset_card("s", summary, recipe, {text: text}, "webdataset")


def shown(card: str) -> tuple[dict[str, object], str]:
    """Return the front matter, and the page rendered by CommonMark with tables."""
    _, front, body = card.split("---\n", 2)
    markdown = MarkdownIt("commonmark", {"html": True}).enable("table").enable("strikethrough")
    return yaml.safe_load(front), markdown.render(body)


def test_names_and_texts_of_others_are_no_markup() -> None:
    front, html = shown(page(HOSTILE))
    _, expected = shown(page("word"))
    assert front["pretty_name"] == "s"
    tags = re.compile(r"</?(\w+)")
    assert tags.findall(html) == tags.findall(expected)
    assert html.count("&lt;script&gt;") == expected.count("word")
    assert html.count("trailing\\") == expected.count("word")


def test_the_recipe_can_be_read_out_of_its_block() -> None:
    card = page(HOSTILE)
    fence, block = re.findall(r"^(`{3,})yaml\n(.*?)\n\1$", card, re.DOTALL | re.MULTILINE)[0]
    assert len(fence) == 5
    assert yaml.safe_load(block)["clauses"] == [{"source": HOSTILE, "where": HOSTILE}]


def test_nothing_on_the_page_steers_a_terminal() -> None:
    card = page(HOSTILE)
    assert all(line.isprintable() for line in card.splitlines())

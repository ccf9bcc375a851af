"""Text templates of recipes: equal to Python's results, and the same for all readers."""

import csv
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from parts import HandMade, Made, fresh_folder
from samples import image_bytes, tar_bytes

from capmix.errors import UserError
from capmix.mix.recipe import Clause, Recipe, load_recipe
from capmix.mix.template import as_sql, filled, pieces
from capmix.workspace import open_workspace

SAMPLES = [
    Made("0" * 32, raw="Old {raw} It's", captions={"m": ["  A Cat {blip} "]}, scores={"m": [0.5]}),
    Made("1" * 32, raw=None, captions={"m": ["two", "second"]}, scores={"m": [0.1, 0.9]}),
    Made("2" * 32, raw="alone"),
    Made("3" * 32, raw=None),
]


@pytest.fixture(scope="module")
def here() -> HandMade:
    return HandMade(fresh_folder(), {"00000": SAMPLES[:2], "00001": SAMPLES[2:]})


def texts(here: HandMade, *clauses: dict[str, str], **more: Any) -> list[tuple[str, str]]:
    """Return the first digit of each row's uid, and its text."""
    recipe = Recipe(name="mine", about="", clauses=[Clause(**one) for one in clauses], **more)
    here.mix(recipe, "s")
    return [(row["uid"][0], row["text"]) for row in here.rows("s")]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("sks style, {m}", [("0", "sks style,   A Cat {blip} "), ("1", "sks style, two")]),
        ("{lower(trim(m))}!", [("0", "a cat {blip}!"), ("1", "two!")]),
        ("{replace(m, 'Cat', 'dog')}", [("0", "  A dog {blip} "), ("1", "two")]),
        ("{m_best} {m_k1}", [("1", "second second")]),
        ("{left(raw, 3)}|{width}", [("0", "Old|100"), ("2", "alo|100")]),
        ("{{{raw}}} it's", [("0", "{Old {raw} It's} it's"), ("2", "{alone} it's")]),
        (
            "{coalesce(raw, '')}",
            [("0", "Old {raw} It's"), ("1", ""), ("2", "alone"), ("3", "")],
        ),
        ("{coalesce(m, raw, '}{')}", [("0", "  A Cat {blip} "), ("1", "two"), ("2", "alone"),
                                      ("3", "}{")]),
        ("plain", [("0", "plain"), ("1", "plain"), ("2", "plain"), ("3", "plain")]),
    ],
)  # fmt: skip
def test_a_text_is_composed_where_all_that_it_names_is_there(
    here: HandMade, text: str, expected: list[tuple[str, str]]
) -> None:
    assert texts(here, {"source": "m", "text": text}) == expected


def test_a_clause_whose_text_lacks_a_part_leaves_the_sample_to_the_next(here: HandMade) -> None:
    both = {"source": "m", "text": "{m} and {raw}"}
    found = texts(here, both, {"source": "m"}, {"source": "raw", "text": "only {raw}"})
    assert found == [
        ("0", "  A Cat {blip}  and Old {raw} It's"), ("1", "two"), ("2", "only alone"),
    ]  # fmt: skip
    summary = here.mix(Recipe(name="mine", about="", clauses=[Clause(**both)]), "t")
    assert summary.dropped == {"no clause holds": 3}


def test_without_text_keep_leaves_an_incomplete_text_empty(here: HandMade) -> None:
    found = texts(here, {"source": "m", "text": "{m} and {raw}"}, without_text="keep")
    assert [text for _, text in found] == ["  A Cat {blip}  and Old {raw} It's", "", "", ""]


def test_all_clauses_and_weights_keep_their_own_texts(here: HandMade) -> None:
    clauses = [{"source": "raw", "text": "a {raw}", "weight": "2"}, {"source": "raw"}]
    found = texts(here, *clauses, keep="all")
    assert found == [
        ("0", "a Old {raw} It's"), ("0", "Old {raw} It's"), ("2", "a alone"), ("2", "alone"),
    ]  # fmt: skip


def test_conditions_and_distinct_are_of_the_texts_that_were_there(here: HandMade) -> None:
    same = {"source": "m", "text": "same"}
    assert texts(here, same | {"where": "m_text = 'two'"}) == [("1", "same")]
    assert len(texts(here, same, distinct="m_text")) == 4


def test_a_composed_text_has_no_score(here: HandMade) -> None:
    texts(here, {"source": "m", "text": "x {m}"}, {"source": "raw"})
    assert [(row["source"], row["score"]) for row in here.rows("s")] == [
        ("m", None), ("m", None), ("raw", None),
    ]  # fmt: skip
    assert not here.store.exists("subsets/s.npy")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{m", "unclosed {"),
        ("m}", "unmatched }"),
        ("{}", "empty expression between { and }"),
        ("{m +}", "syntax error"),
        ("{random()}", "no function 'random'"),
        ("{blip}", "no column 'blip'"),
        ("{threshold(m_score, 0.3)}", "thresholds are not supported in texts"),
        ("{repeat(m, 1000)}", "no function 'repeat'"),
        ("{length(width)}", "clause 'm as .*Binder Error"),
        ("x" * 10_001, "more than 10,000 characters"),
    ],
)
def test_a_template_that_cannot_be_used_is_named(here: HandMade, text: str, message: str) -> None:
    with pytest.raises((UserError, ValueError), match=message):
        texts(here, {"source": "m", "text": text})


def test_parameters_are_filled_in_templates(tmp_path: Path) -> None:
    file = tmp_path / "my.yaml"
    file.write_text(
        """
name: my
about: composed
parameters: {synthetic: m, fraction: 0.3}
clauses:
  - source: "{synthetic}"
    text: "{synthetic}: {lower({synthetic}_best)} {{synthetic}} {fraction} {raw}"
"""
    )
    (clause,) = load_recipe(str(file), {"synthetic": "blip2"}).clauses
    assert clause.text == "{blip2}: {lower(blip2_best)} {{synthetic}} {0.3} {raw}"


def test_braces_between_quotes_are_no_parameters() -> None:
    def fill(text: str) -> str:
        return text.replace("{word}", "blip2")

    given = """{replace({word}, '{word}', 'it''s {word}')} {"{word}" || '"' || {word}}"""
    assert filled(given, fill, {"word"}) == (
        """{replace(blip2, '{word}', 'it''s {word}')} {"{word}" || '"' || blip2}"""
    )


def test_a_recipe_may_have_braces_between_quotes(tmp_path: Path) -> None:
    file = tmp_path / "my.yaml"
    text = "{regexp_replace(raw, 'a{word}', '')}"
    file.write_text(f'{{name: my, about: x, clauses: [{{source: raw, text: "{text}"}}]}}')
    (clause,) = load_recipe(str(file)).clauses
    assert clause.text == text


@given(st.text(alphabet="ab{}'\"\\ |", max_size=20))
def test_any_plain_text_comes_out_as_it_is(text: str) -> None:
    template = text.replace("{", "{{").replace("}", "}}")
    assert list(pieces(template)) == ([(text, False)] if text else [])
    assert filled(template, lambda one: one, set()) == template
    quoted = text.replace("'", "''")
    assert as_sql(template) == f"'{quoted}'"


def test_a_composed_text_is_the_same_wherever_it_is_read(tmp_path: Path) -> None:
    (tmp_path / "pool").mkdir()
    members = []
    for number, title in enumerate(["A {raw} title", None, "Ünï 'quoted'"]):
        about = {"uid": f"{number:032x}", "title": title}
        members += [(f"{number:09d}.jpg", image_bytes(number))]
        members += [(f"{number:09d}.json", json.dumps(about).encode())]
        members += [(f"{number:09d}.txt", b"raw %d" % number)]
    (tmp_path / "pool/00000.tar").write_bytes(tar_bytes(members))
    (tmp_path / "my.yaml").write_text(
        """
name: my
about: composed
clauses:
  - {source: raw, text: "sks style, {upper(raw)} of {title}"}
"""
    )
    work = open_workspace(str(tmp_path / "pool"), str(tmp_path / "work"))
    expected = {
        f"{0:032x}": "sks style, RAW 0 of A {raw} title",
        f"{2:032x}": "sks style, RAW 2 of Ünï 'quoted'",
    }
    subset = work.mix(str(tmp_path / "my.yaml"))
    table = subset.table()
    assert dict(zip(table["uid"].to_pylist(), table["text"].to_pylist(), strict=True)) == expected
    work.export(subset, tmp_path / "tars")
    with tarfile.open(tmp_path / "tars/00000000.tar") as archive:
        found = {m.name: archive.extractfile(m).read() for m in archive}  # type: ignore[union-attr]
    assert {n[:32]: t.decode() for n, t in found.items() if n.endswith(".txt")} == expected
    work.export(subset, tmp_path / "csv", format="csv")
    (file,) = (tmp_path / "csv").glob("*.csv")
    with file.open(encoding="utf-8", newline="") as stream:
        assert {row["uid"]: row["text"] for row in csv.DictReader(stream)} == expected
    marker = work.store.read_marker("subsets/my")
    assert marker is not None
    assert marker.config["recipe"]["clauses"][0]["text"].startswith("sks style")

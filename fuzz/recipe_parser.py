"""Fuzz the input of users: recipe files, pipeline files and the SQL of conditions.

Invariants: load_recipe, load_pipeline and parse raise only UserError, and parse accepts the SQL
that it produces from an accepted condition. The first byte of an input selects one of the three
functions for the rest; the conditions of a valid recipe are also parsed, as in `capmix mix`.

    python fuzz/recipe_parser.py --seconds 600
    python fuzz/recipe_parser.py fuzz/found/recipe_parser-crash-...
"""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import atheris
from harness import fuzz

with atheris.instrument_imports(include=["capmix", "yaml"]):
    from capmix.errors import UserError
    from capmix.mix.expression import parse
    from capmix.mix.recipe import load_recipe
    from capmix.pipeline.config import load_pipeline

CONDITIONS = (
    "raw_score >= threshold(raw_score, 0.3) and language(raw_text) = 'en'",
    "top(least(mini_score, raw_score)::FLOAT, 0.5) or not in_list('kept')",
    "times_in_list('kept') * 1e-3 + case when draw between 0 and .5 then 2.5 else -1 end",
    "key like 'a%' and regexp_matches(raw_text, '\\w{4}') -- comment",
    'width in (1, 2) and cast("height" as double) is not null /* comment */',
    "[1, 2][1] = {'a': 1}.a and x -> x + 1 and (select 1) = $1",
    "count(*) over (order by uid) = random() and interval 3 day > date '2020-01-01'",
)
PIPELINE = """\
pool: {a: &place embedded, b: *place}
work: out
max_failures: 0.02
caption: {mini: {model: mini, captions_per_image: 2, temperature: 1e-1}}
score: {model: mini, sources: [raw, mini], dtype: auto}
measure:
mix:
  seed: 1
  recipes: [raw, {recipe: raw-top, fraction: [0.1, 0.3]}, {recipe: best-of-k, synthetic: mini}]
export: {samples_per_shard: 0x10}
probe: {seeds: [0]}
train: {scale: tiny, samples: 1024, texts: {raw: 1, mini: 0.5}, open_clip: [--lr-scheduler=const]}
evaluate: {tasks: "all"}
report: {order: [raw], note: !!str 2020-01-01}
"""
WORDS = """\
threshold( top( in_list(' times_in_list(' union select from as :: filter(where distinct order by
case when then end between collate interval {percent} {fraction} parameters: clauses: source: where:
weight: keep: all distinct: max_repeats: shuffle: base: &a *a <<: !!int !!timestamp !!binary !!set
%YAML --- ? |- .nan 0x \\ud800 recipes: fraction:"""


def check(data: bytes) -> None:
    which, content = data[:1], data[1:]
    with contextlib.suppress(UserError):
        if which == b"p":
            load_pipeline(file_with(content))
        elif which == b"r":
            for clause in load_recipe(file_with(content)).clauses:
                check_condition(clause.where)
                check_condition(clause.weight)
        else:
            check_condition(content.decode("utf-8", "surrogateescape"))


def check_condition(text: str) -> None:
    expression = parse(text, "clause")
    try:
        parse(expression.sql, "clause")
    except UserError as error:
        raise AssertionError(f"{text!r} became {expression.sql!r}, which is rejected") from error


def file_with(content: bytes) -> str:
    path = Path(tempfile.gettempdir()) / f"capmix-fuzz-{os.getpid()}.yaml"
    path.write_bytes(content)
    return str(path)


def seeds() -> Iterator[bytes]:
    yield from (b"s" + condition.encode() for condition in CONDITIONS)
    recipes = resources.files("capmix.mix") / "recipes"
    yield from (b"r" + file.read_bytes() for file in sorted(recipes.iterdir(), key=str))
    yield b"p" + PIPELINE.encode()


if __name__ == "__main__":
    fuzz(__doc__, check, seeds(), WORDS.split())

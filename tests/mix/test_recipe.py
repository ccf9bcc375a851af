from pathlib import Path

import pytest

from capmix.errors import UserError
from capmix.mix.recipe import combinations, load_recipe, shipped_recipes


def test_every_shipped_recipe_loads_and_says_what_it_does() -> None:
    names = shipped_recipes()
    assert len(names) >= 11
    for name in names:
        assert load_recipe(name).about


def test_parameters_fill_name_and_clauses() -> None:
    recipe = load_recipe("raw-top+synthetic-above", {"fraction": 0.25, "synthetic": "blip2"})
    assert recipe.name == "raw-top25+blip2-above"
    assert recipe.clauses[1].where == "blip2_score >= threshold(raw_score, 0.25)"


@pytest.mark.parametrize("fraction", [0, 1.5, -0.1, "30%", True, float("nan")])
def test_a_fraction_outside_its_range_is_named(fraction: object) -> None:
    with pytest.raises(UserError, match="fraction .*expected a number above 0 and at most 1"):
        load_recipe("raw-top", {"fraction": fraction})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("clauses: [", "invalid YAML: line 1, column 11: expected"),
        ("- raw", "expected name, about and clauses"),
        ("{name: a, about: b, clauses: []}", "clauses"),
        ("{name: a, about: b, clauses: [{source: raw}], extra: 1}", "extra"),
        ("{name: '{missing}', about: b, clauses: [{source: raw}]}", "no parameter"),
        ("{name: a, about: b, clauses: [{source: raw}], max_repeats: 10001}", "at most 10000"),
        ("{name: ../a, about: b, clauses: [{source: raw}]}", "recipe name"),
        ("!!python/object/apply:os.system ['true']", "invalid YAML"),
    ],
)
def test_a_faulty_file_is_one_clear_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        load_recipe(str(path))
    assert "\n" not in str(caught.value)


def test_unknown_names_list_what_there_is() -> None:
    with pytest.raises(UserError, match="raw-top"):
        load_recipe("raw-bottom")
    with pytest.raises(UserError, match="its parameters: fraction"):
        load_recipe("raw-top", {"threshold": 0.3})


def test_a_base_of_a_base_and_braces_of_a_regex(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(
        "{base: raw-top-image-based, name: mine, where: \"regexp_matches(key, '[0-9]{4}')\"}"
    )
    recipe = load_recipe(str(path), {"fraction": 0.2})
    assert recipe.name == "mine"
    assert "{4}" in recipe.clauses[0].where
    assert "threshold(raw_score, 0.2)" in recipe.clauses[0].where


def test_a_sweep_without_end_is_refused() -> None:
    with pytest.raises(UserError, match="more than 10,000 subsets"):
        combinations({f"p{number}": list(range(10)) for number in range(8)})

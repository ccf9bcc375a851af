"""Names of sources, scorers, annotations and pool fields are never ambiguous in recipes."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from parts import HandMade, Made, fresh_folder
from samples import write_pool

from capmix.cli.main import main
from capmix.errors import UserError
from capmix.mix.columns import columns_of
from capmix.mix.recipe import Clause, Recipe
from capmix.workspace import open_workspace

CLIP = {"clip": ["raw", "mini"]}


@pytest.mark.parametrize(
    ("sources", "scored", "annotations", "of_pool", "column", "owners"),
    [
        (["raw", "mini", "mini_best"], CLIP, {}, [], "mini_best_text", ["'mini'", "'mini_best'"]),
        (["raw", "mini_best", "mini"], {}, {}, [], "mini_best_text", ["'mini'", "'mini_best'"]),
        (["raw", "mini", "mini_k0"], {}, {}, [], "mini_k0_text", ["'mini'", "'mini_k0'"]),
        (["raw", "mini"], CLIP, {"mini": ["score"]}, [], "mini_score", ["annotation 'mini'"]),
        (["raw", "mini"], CLIP, {"mini": ["text"]}, [], "mini_text", ["annotation 'mini'"]),
        (["raw"], {}, {}, ["raw_text"], "raw_text", ["the pool's field 'raw_text'"]),
        (["raw", "mini"], {}, {}, ["mini_score"], "mini_score", ["the pool's field 'mini_score'"]),
        (["raw"], {"a-b": ["raw"], "a_b": ["raw"]}, {}, [], "raw_score_a_b", ["'a-b'", "'a_b'"]),
        (["x", "x_score"], {"text": ["x"]}, {}, [], "x_score_text", ["'x_score'", "'text'"]),
        (["x"], {"y": ["x"]}, {"x_score": ["y"]}, [], "x_score_y", ["annotation 'x_score'"]),
        ([], {}, {"a": ["b_c"], "a_b": ["c"]}, [], "a_b_c", ["annotation 'a'", "annotation 'a_b'"]),
    ],
)
def test_a_column_of_two_owners_is_refused_with_both(
    sources: Sequence[str],
    scored: Mapping[str, Sequence[str]],
    annotations: Mapping[str, Sequence[str]],
    of_pool: Sequence[str],
    column: str,
    owners: Sequence[str],
) -> None:
    with pytest.raises(UserError) as caught:
        columns_of(sources, scored, next(iter(scored), None), annotations, of_pool)
    assert f"column name {column!r} belongs to " in str(caught.value)
    assert all(owner in str(caught.value) for owner in owners)


def test_sources_of_any_allowed_names_have_columns_of_their_own() -> None:
    sources = ["raw", "a", "a_text", "a_k", "k0_a", "best"]
    scored = {"text": sources, "k-0": sources, "best": ["a"]}
    found = columns_of(sources, scored, "best", {"a": ["value"], "a_near": ["reference"]})
    assert len({str(found[f"{source}_text"]) for source in sources}) == len(sources)


def test_imported_texts_do_not_pass_with_the_scores_of_another_source(tmp_path: Path) -> None:
    sample = Made("a" * 32, captions={"m": ["x"], "m_best": ["bad"]}, scores={"m": [0.9]})
    with pytest.raises(
        UserError, match="column name 'm_best_text' belongs to source 'm' and to source"
    ):
        HandMade(tmp_path, {"00000": [sample]})


def test_a_clause_takes_texts_of_sources_alone() -> None:
    here = HandMade(fresh_folder(), {"00000": [Made("a" * 32)]})
    here.columns |= columns_of([], {}, None, {"notes": ["text"]}, ["title_text"])
    for source in ("notes", "title"):
        recipe = Recipe(name="mine", about="", clauses=[Clause(source=source)])
        with pytest.raises(UserError, match=f"no captions of source '{source}'; sources: raw"):
            here.mix(recipe)


def test_columns_that_differ_in_case_alone_are_refused_where_both_are_used() -> None:
    here = HandMade(fresh_folder(), {"00000": [Made("a" * 32)]})
    here.columns |= columns_of([], {}, None, {}, ["WIDTH", "Draw"])
    for where in ("WIDTH > 5 or width > 5", '"Draw" < 0.5'):
        recipe = Recipe(name="mine", about="", clauses=[Clause(source="raw", where=where)])
        with pytest.raises(UserError, match="recipe mine: columns .* differ only in case"):
            here.mix(recipe)


def test_a_uid_list_named_as_a_column_is_refused(tmp_path: Path) -> None:
    (tmp_path / "uids.txt").write_text("a" * 32)
    here = HandMade(fresh_folder(), {"00000": [Made("a" * 32, captions={"list": ["x"]})]})
    clause = Clause(source="list", where="in_list('text')")
    with pytest.raises(UserError, match=r"--uids text=...: list_text is a column"):
        here.mix(
            Recipe(name="x", about="", clauses=[clause]), uids={"text": str(tmp_path / "uids.txt")}
        )


@pytest.mark.parametrize(
    "command",
    [
        "caption --source mini_best",
        "import captions {file} --source mini_k0",
        "import scores {file} --source raw --scorer a.b",
        "annotate --method clusters --name raw_score",
    ],
)
def test_a_name_of_two_meanings_is_refused_where_it_is_given(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pool = write_pool(tmp_path / "pool", shards=1, samples=2)
    work = open_workspace(str(pool), str(tmp_path / "work"))
    uids = work.table()["uid"].to_pylist()
    file = tmp_path / "x.csv"
    file.write_text("uid,text,score\n" + "".join(f"{uid},a,0.5\n" for uid in uids))
    work.import_scores([file], source="raw", scorer="a-b")
    (tmp_path / "work/embeddings/x/image").mkdir(parents=True)
    name, *options = command.format(file=file).split()
    assert main([name, *options, "--work", str(tmp_path / "work")]) == 2
    error = capsys.readouterr().err.strip()
    assert "choose another name" in error
    assert "\n" not in error

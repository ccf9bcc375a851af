import duckdb
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capmix.errors import UserError
from capmix.mix.mix import select, threshold
from capmix.mix.recipe import Clause, Recipe, load_recipe

score = st.one_of(st.none(), st.integers(-5, 30).map(lambda i: np.float32(i / 100)))
rows = st.lists(st.tuples(score, score), min_size=1, max_size=40)


def connection(scores: list[tuple[float | None, float | None]]) -> duckdb.DuckDBPyConnection:
    raw, mini = zip(*scores, strict=True)
    numbers = range(len(scores))
    table = pa.table(
        {
            "uid": [f"u{i}" for i in numbers],
            "shard": ["00000"] * len(scores),
            "position": list(numbers),
            "key": [str(i) for i in numbers],
            "width": pa.array([100] * len(scores), pa.int32()),
            "draw": [((i * 37) % 101) / 101 for i in numbers],
            "raw_text": [None if s is None else f"raw {i}" for i, s in enumerate(raw)],
            "raw_score": pa.array(raw, pa.float32()),
            "mini_text": [None if s is None else f"mini {i}" for i, s in enumerate(mini)],
            "mini_score": pa.array(mini, pa.float32()),
        }
    )
    made = duckdb.connect()
    made.register("given", table)
    made.execute("create table samples as select * from given")
    return made


def datacomp_threshold(scores: np.ndarray, fraction: float) -> float:
    """DataComp baselines/apply_filter.py get_threshold, written again: NaN sorts last."""
    return float(-np.sort(-scores)[int(len(scores) * fraction)])


@given(st.lists(score, min_size=1, max_size=50), st.sampled_from([0.01, 0.1, 0.3, 0.5, 0.99]))
def test_threshold_is_datacomps(scores: list[float | None], fraction: float) -> None:
    values = np.array([np.nan if s is None else s for s in scores], np.float32)
    expected = datacomp_threshold(values, fraction)
    found = threshold(values, fraction)
    if np.isnan(expected):
        assert found == -np.inf  # too few scores: all of them pass
    else:
        assert found == expected


@settings(deadline=None)
@given(rows, st.sampled_from([0.1, 0.3, 0.5, 1.0]))
def test_each_shipped_recipe_selects_what_plain_python_selects(
    scores: list[tuple[float | None, float | None]], fraction: float
) -> None:
    raw = np.array([np.nan if r is None else r for r, _ in scores], np.float32)
    mini = np.array([np.nan if m is None else m for _, m in scores], np.float32)
    t_raw, t_mini = threshold(raw, fraction), threshold(mini, fraction)
    ok_raw, ok_mini = ~np.isnan(raw), ~np.isnan(mini)
    top_raw, top_mini = ok_raw & (raw >= t_raw), ok_mini & (mini >= t_mini)
    expected = {
        "raw": np.where(ok_raw, "raw", ""),
        "raw-top": np.where(top_raw, "raw", ""),
        "synthetic": np.where(ok_mini, "mini", ""),
        "synthetic-top": np.where(top_mini, "mini", ""),
        "raw-top+synthetic": np.where(top_raw, "raw", np.where(ok_mini, "mini", "")),
        "raw-top+synthetic-above": np.where(
            top_raw, "raw", np.where(ok_mini & (mini >= t_raw), "mini", "")
        ),
        "best-source": np.where(
            ok_raw & ((raw >= mini) | ~ok_mini), "raw", np.where(ok_mini, "mini", "")
        ),
    }
    made = connection(scores)
    for name, choice in expected.items():
        parameters = {"fraction": fraction} if "top" in name else {}
        recipe = load_recipe(name, parameters)
        if not (choice != "").any():
            with pytest.raises(UserError, match="selects none"):
                select(made, recipe)
            continue
        table, summary = select(made, recipe)
        found = {row["uid"]: row for row in table.to_pylist()}
        assert {uid: row["source"] for uid, row in found.items()} == {
            f"u{i}": source for i, source in enumerate(choice) if source
        }
        for uid, row in found.items():
            assert row["text"] == f"{row['source']} {uid[1:]}"
            own = raw if row["source"] == "raw" else mini
            assert row["score"] == own[int(uid[1:])]
        assert sum(summary.by_clause.values()) == summary.kept == len(found)


@settings(deadline=None)
@given(rows)
def test_widening_a_fraction_never_removes_a_sample(
    scores: list[tuple[float | None, float | None]],
) -> None:
    if all(raw is None for raw, _ in scores):
        return
    made = connection(scores)
    kept: set[str] = set()
    for fraction in (0.1, 0.3, 0.6, 1.0):
        table, _ = select(made, load_recipe("raw-top", {"fraction": fraction}))
        now = set(table.column("uid").to_pylist())
        assert kept <= now
        kept = now


def test_a_threshold_on_the_score_itself_is_kept_in_float32() -> None:
    scores = [(np.float32(i / 100), None) for i in range(100)]
    for fraction in (0.29, 0.3, 0.31, 0.57):
        table, _ = select(connection(scores), load_recipe("raw-top", {"fraction": fraction}))
        assert len(table) == int(100 * fraction) + 1


def test_shuffling_moves_every_text_and_loses_none() -> None:
    scores = [(np.float32(0.1), None)] * 30
    table, _ = select(connection(scores), load_recipe("control-raw-shuffled"))
    texts = table.column("text").to_pylist()
    assert sorted(texts) == sorted(f"raw {i}" for i in range(30))
    assert all(text != f"raw {i}" for i, text in enumerate(texts))


def recipe(source: str = "raw", where: str = "true") -> Recipe:
    return Recipe(name="mine", about="mine", clauses=[Clause(source=source, where=where)])


@pytest.mark.parametrize(
    ("given_recipe", "message"),
    [
        (recipe("blip2"), "no source 'blip2'; sources here: raw, mini"),
        (recipe(where="row_score > 0"), "row_score.*Columns: uid"),
        (recipe(where="raw_score >= threshold(raw_scores, 0.3)"), "no column 'raw_scores'"),
        (recipe(where="raw_score >= threshold(raw_score, 30)"), "fraction 30"),
        (recipe(where="raw_score >= threshold(raw_score, '30%')"), "fraction '30%'"),
        (recipe(where="raw_score >"), "clause"),
        (recipe(where="true); drop table samples; select (1"), "clause"),
        (recipe(where="raw_score > 5"), "selects none of 3 samples"),
    ],
)
def test_a_recipe_that_does_not_fit_names_clause_and_columns(
    given_recipe: Recipe, message: str
) -> None:
    made = connection([(np.float32(0.1), np.float32(0.2))] * 3)
    with pytest.raises(UserError, match=message) as caught:
        select(made, given_recipe)
    assert "mine" in str(caught.value)
    assert len(made.sql("select * from samples").to_arrow_table()) == 3

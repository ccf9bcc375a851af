"""Recipes over arrays and references select the same rows as recipes over full tables."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from parts import SCORER, HandMade, Made, fresh_folder
from table_path import mixed

from capmix.errors import UserError
from capmix.mix.recipe import Clause, Recipe
from capmix.mix.settings import MixSettings
from capmix.mix.subset import SubsetRows, write_parquet
from capmix.score.array import ScoreArray
from capmix.storage.layout import ARRAYS

score = st.one_of(st.none(), st.integers(-5, 9).map(lambda i: float(np.float32(i / 10))))
SOURCES = ("raw", "mini", "mini_best", "mini_k1", "mini_k3", "other", "other_best")
CONDITIONS = (
    "true",
    "{s}_score > 0.1",
    "top({s}_score, 0.4)",
    "top(raw_score, 0.3)",
    "{s}_score >= threshold(raw_score, 0.5)",
    "{s}_score >= datacomp_threshold(mini_score, 0.9)",
    "{s}_score is null or mini_best_score > 0.5",
    "top(coalesce({s}_score, 0), 0.4)",
    "length({s}_text) > 6",
    "width > 103 and {s}_score > -0.2",
    "draw < 0.6",
    "in_list('some')",
    "mini_k > 0 or mini_best_k = 1",
    "top({s}_score - raw_score, 0.5)",
    "shard = '00001' or key < '1'",
    "not mini_truncated",
    "normalised({s}_score) > 0.5",
    "zscore({s}_score) >= zscore(raw_score)",
    "top(normalised({s}_score) / 2 + normalised(raw_score) / 2, 0.4)",
    "zscore(length({s}_text)) > 0 or zscore(in_list('some')::INTEGER) > 1",
)
WEIGHTS = ("1", "2.5", "{s}_score * 3", "times_in_list('some')", "3 * normalised({s}_score)")
often = settings(
    max_examples=15,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@st.composite
def samples(draw: st.DrawFn) -> list[Made]:
    found = []
    for i in range(draw(st.integers(1, 25))):
        captions, scores = {}, {}
        for source in ("mini", "other"):
            count = draw(st.integers(0, 3 if source == "mini" else 1))
            captions[source] = [f"{source} {i} {k}" * (1 + (i + k) % 2) for k in range(count)]
            scores[source] = draw(st.lists(score, min_size=count, max_size=count))
        raw = draw(st.sampled_from([None, "", f"raw {i}"]))
        raw_score = draw(score) if raw else None
        failed = draw(st.integers(0, 9)) == 0
        size, sha256 = (100 + i % 7, 100), f"{draw(st.integers(0, 5)):064x}"
        found.append(Made(f"{i:032x}", raw, raw_score, captions, scores, size, sha256, failed))
    if all(one.failed for one in found):
        found.append(Made("f" * 32, "raw", 0.5, {"mini": ["a"]}, {"mini": [0.5]}))
    return found


@st.composite
def recipes(draw: st.DrawFn) -> Recipe:
    clauses = []
    for _ in range(draw(st.integers(1, 3))):
        source = draw(st.sampled_from(SOURCES))
        where, weight = draw(st.sampled_from(CONDITIONS)), draw(st.sampled_from(WEIGHTS))
        clauses.append(
            Clause(source=source, where=where.format(s=source), weight=weight.format(s=source))
        )
    return Recipe(
        name="drawn",
        about="",
        clauses=clauses,
        keep=draw(st.sampled_from(["first", "all"])),
        without_text=draw(st.sampled_from(["drop", "keep"])),
        distinct=draw(st.sampled_from([None, None, "sha256", "width"])),
    )


drawn = given(samples(), recipes(), st.integers(1, 9), st.booleans())


@often
@drawn
def test_any_recipe_selects_what_it_selects_from_tables(
    made: list[Made], recipe: Recipe, at_once: int, texts: bool
) -> None:
    """Runs twice, before and after arrays exist; with references and with texts in the subset."""
    compare(made, recipe, at_once, texts)


@pytest.mark.slow
@settings(often, max_examples=1000)
@drawn
def test_a_thousand_recipes_select_what_they_select_from_tables(
    made: list[Made], recipe: Recipe, at_once: int, texts: bool
) -> None:
    compare(made, recipe, at_once, texts)


def compare(made: list[Made], recipe: Recipe, at_once: int, texts: bool) -> None:
    starts = range(0, len(made), at_once)
    folder = fresh_folder()
    here = HandMade(folder, {f"{i:05d}": made[s : s + at_once] for i, s in enumerate(starts)})
    (folder / "some.txt").write_text("\n".join(one.uid for one in made[::2] + made[::4]))
    chosen = MixSettings(uids={"some": str(folder / "some.txt")}, texts=texts)
    expected = mixed(here.store, here.pool, recipe, here.columns, chosen)  # type: ignore[arg-type]
    for _ in range(2):
        if not expected:
            with pytest.raises(UserError, match="selects none of"):
                here.mix(recipe, **chosen.model_dump())
            continue
        summary = here.mix(recipe, **chosen.model_dump())
        assert here.rows() == expected
        assert summary.kept == len(expected)
        here.store.remove_marker("subsets/out")


def pool_of(*made: Made) -> HandMade:
    return HandMade(fresh_folder(), {"00000": list(made)})


def arrays(here: HandMade) -> list[Path]:
    return sorted(p for p in Path(here.store.path(ARRAYS)).rglob("*") if p.is_file())


def top(source: str) -> Recipe:
    clause = Clause(source=source, where=f"{source}_score > 0.15")
    return Recipe(name="top", about="", clauses=[clause])


ONE = Made("1" * 32, "one", 0.1, {"mini": ["a", "b"]}, {"mini": [0.1, 0.3]})
TWO = Made("2" * 32, "two", 0.2, {"mini": ["c", "d"]}, {"mini": [0.2, 0.2]})


def test_a_recipe_of_scores_opens_no_table(monkeypatch: pytest.MonkeyPatch) -> None:
    here = pool_of(ONE, TWO)
    here.mix(top("mini_best"))
    assert len(arrays(here)) == 1

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("a table is read")

    monkeypatch.setattr(type(here.store), "open_table", refuse)
    here.store.remove_marker("subsets/out")
    assert here.mix(top("mini_best")).kept == 2


@pytest.mark.parametrize("change", ["flip", "cut", "empty", "folder"])
def test_a_damaged_array_is_made_again(change: str) -> None:
    here = pool_of(ONE, TWO)
    here.mix(top("mini"))
    (path,) = arrays(here)
    whole = path.read_bytes()
    for place in range(0, len(whole), 9) if change == "flip" else [0]:
        damaged = bytearray(whole)
        damaged[place] ^= 1
        path.unlink()
        if change == "folder":
            path.mkdir()
        else:
            path.write_bytes({"cut": whole[:-1], "empty": b""}.get(change, bytes(damaged)))
        here.store.remove_marker("subsets/out")
        assert here.mix(top("mini")).kept == 1
        assert change == "folder" or path.read_bytes() == whole


def test_an_array_of_scores_that_were_made_again_is_not_used() -> None:
    here = pool_of(ONE, TWO)
    here.mix(top("raw"))
    newer = HandMade(Path(here.store.root), {"00000": [ONE, Made("2" * 32, "two", 0.1)]})
    with pytest.raises(UserError, match="selects none of 2 samples"):
        newer.mix(top("raw"))


def test_parts_without_digests_have_no_arrays() -> None:
    """Fingerprints of such parts do not change with their content."""
    import json

    here = pool_of(ONE, TWO)
    for path in Path(here.store.path(".markers")).rglob("*.json"):
        value = json.loads(path.read_text())
        del value["check"]
        files = {name: about["bytes"] for name, about in value["files"].items()}
        path.write_text(json.dumps(value | {"format": 1, "files": files}))
    assert here.mix(top("raw")).kept == 1
    assert arrays(here) == []


def test_the_best_caption_is_the_first_of_the_highest() -> None:
    nan = np.nan
    scores = np.array([[0.1, nan, nan, 0.2], [0.3, nan, 0.1, 0.2]], np.float32)
    texts = np.array([[1, 0, 1, 1], [1, 1, 1, 1]], bool)
    array = ScoreArray(scores, None, texts)
    assert array.best().tolist() == [1, 1, 1, 0]
    assert array.has_text_at(np.array([1, 0, 7, 0])).tolist() == [True, False, False, True]
    found = array.at(np.array([0, 0, 1, 5], np.int32))
    assert found.tolist()[:1] == [np.float32(0.1)]
    assert np.isnan(found[[1, 3]]).all()


def test_a_subset_is_small_and_gives_its_texts_to_other_tools(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    here = pool_of(ONE, TWO)
    here.mix(top("mini_best"))
    columns = ["shard", "row", "source", "k", "score", "weight", "copy"]
    assert pq.read_table(here.store.path("subsets/out.parquet")).column_names == columns
    here.mix(top("mini_best"), "full", texts=True)
    full = pq.read_table(here.store.path("subsets/full.parquet"))
    assert full.column_names == [*columns, "uid", "key", "text"]
    assert write_parquet(SubsetRows.pinned(here.store, "out"), str(tmp_path / "x.parquet")) == 2
    written = pq.read_table(tmp_path / "x.parquet")
    assert written.to_pylist() == here.rows()
    assert written["text"].to_pylist() == full["text"].to_pylist() == ["b", "c"]


def test_a_subset_of_texts_that_were_written_again_is_refused() -> None:
    here = pool_of(ONE, TWO)
    here.mix(top("mini"))
    newer = Made("2" * 32, "two", 0.2, {"mini": ["e", "d"]}, {"mini": [0.2, 0.2]})
    again = HandMade(Path(here.store.root), {"00000": [ONE, newer]})
    expected = "out refers to .*captions/mini, whose shard 00000 was .*`capmix mix --out out`"
    with pytest.raises(UserError, match=expected):
        again.rows()
    with pytest.raises(UserError, match=expected):
        SubsetRows.pinned(again.store, "out").refuse_stale()


def test_a_subset_that_has_its_texts_is_refused_once_its_samples_are_others() -> None:
    here = pool_of(ONE, TWO)
    here.mix(top("mini_best"), texts=True)
    newer = Made("2" * 32, "two", 0.2, {"mini": ["e", "d"]}, {"mini": [0.2, 0.2]})
    again = HandMade(Path(here.store.root), {"00000": [ONE, newer]})  # only the captions changed
    SubsetRows.pinned(again.store, "out").refuse_stale()
    assert [row["text"] for row in again.rows()] == ["b", "c"]
    other = Made("2" * 32, "another picture", 0.2, {"mini": ["c", "d"]}, {"mini": [0.2, 0.2]})
    replaced = HandMade(Path(here.store.root), {"00000": [ONE, other]})
    expected = "out refers to .*samples, whose shard 00000 was .*`capmix mix --out out`"
    with pytest.raises(UserError, match=expected):
        replaced.rows()
    with pytest.raises(UserError, match=expected):
        SubsetRows.pinned(replaced.store, "out").refuse_stale()


def test_samples_of_one_uid_have_texts_of_their_own() -> None:
    """Metadata files may repeat a uid."""
    uids, texts = "11223", ["one", None, None, "two b", "three"]
    made = [Made(u * 32, t, 0.5) for u, t in zip(uids, texts, strict=True)]
    here = pool_of(*made)
    recipe = Recipe(name="raw", about="", clauses=[Clause(source="raw")])
    for _ in range(2):
        here.mix(recipe, texts=True)
        assert [row["text"] for row in here.rows()] == ["one", "two b", "three"]
        here.store.remove_marker("subsets/out")


def test_captions_found_by_uid_are_those_of_every_sample_with_it() -> None:
    both = {"mini": ["a", "b"]}
    made = [Made("1" * 32, captions=both, scores={"mini": [0.1, 0.9]}) for _ in range(2)]
    here = pool_of(made[0], TWO)
    twice = pool_of(*made)
    for place, count in ((here, 1), (twice, 2)):
        place.mix(Recipe(name="k", about="", clauses=[Clause(source="mini_k1", where="draw >= 0")]))
        assert [row["text"] for row in place.rows()][:count] == ["b"] * count


def test_the_best_caption_depends_on_the_captions_that_are_there() -> None:
    here = pool_of(ONE, TWO)
    recipe = Recipe(
        name="b", about="", clauses=[Clause(source="raw", where="mini_best_score > 0.1")]
    )
    here.mix(recipe)
    marker = here.store.read_marker("subsets/out")
    assert marker is not None
    assert {"captions/mini", f"scores/{SCORER}/mini", "samples"} <= marker.inputs.keys()


def test_processes_select_what_threads_select(monkeypatch: pytest.MonkeyPatch) -> None:
    """As for a large pool: several processes, and two passes for thresholds."""
    from capmix.mix import mix as mixing
    from capmix.mix import run as running

    captions = [{"mini": [f"m {i}"]} for i in range(60)]
    made = [
        Made(f"{i:032x}", f"raw {i}", i / 60, one, {"mini": [i % 7 / 9]}, sha256=f"{i % 20:064x}")
        for i, one in enumerate(captions)
    ]
    clauses = [
        Clause(source="raw", where="top(raw_score, 0.3)", weight="1.5"),
        Clause(source="mini_best", where="top(mini_score - raw_score, 0.5) and draw < 0.9"),
    ]
    recipe = Recipe(name="r", about="", clauses=clauses, distinct="sha256")
    found = []
    for at_most in (running.KEEP_AT_MOST, 0):
        monkeypatch.setattr(mixing, "ROWS_AT_ONCE", 9)
        monkeypatch.setattr(mixing, "KEEP_AT_MOST", at_most)
        monkeypatch.setattr(running, "KEEP_AT_MOST", at_most)
        here = HandMade(fresh_folder(), {f"{i:05d}": made[6 * i : 6 * i + 6] for i in range(10)})
        here.mix(recipe, workers=2, npy=True)
        subsets = Path(here.store.path("subsets"))
        files = [path for path in sorted(subsets.rglob("*")) if path.is_file()]
        found.append({str(path.relative_to(subsets)): path.read_bytes() for path in files})
    assert len(found[0]) == 3
    assert found[0] == found[1]
    missing = Recipe(name="m", about="", clauses=[Clause(source="raw", where="raw_score < -1")])
    with pytest.raises(UserError, match="selects none of 60 samples"):
        here.mix(missing, workers=2)

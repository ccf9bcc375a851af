"""Recipes over hand-written parts, compared with plain Python and NumPy."""

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from parts import HandMade, Made, fresh_folder

from capmix.errors import UserError
from capmix.mix.recipe import Clause, Recipe, load_recipe
from capmix.mix.threshold import Ordered, TopFraction

score = st.one_of(st.none(), st.integers(-5, 30).map(lambda i: float(np.float32(i / 100))))
pairs = st.lists(st.tuples(score, score), min_size=1, max_size=40)
quick = settings(
    max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def made(scores: list[tuple[float | None, float | None]]) -> list[Made]:
    """Samples u0, u1, ... with a raw text and a caption by mini for each one that has a score."""
    return [
        Made(
            uid=f"{i:032x}",
            raw=None if raw is None else f"raw {i}",
            raw_score=raw,
            captions={"mini": [] if mini is None else [f"mini {i}"]},
            scores={"mini": [] if mini is None else [mini]},
            size=(100 + i, 100),
        )
        for i, (raw, mini) in enumerate(scores)
    ]


def in_shards(samples: list[Made], size: int = 7) -> dict[str, list[Made]]:
    starts = range(0, len(samples), size)
    return {f"{i // size:05d}": samples[i : i + size] for i in starts}


def work(samples: list[Made], size: int = 7) -> HandMade:
    return HandMade(fresh_folder(), in_shards(samples, size))


def datacomp_threshold(scores: np.ndarray, fraction: float) -> float:
    """DataComp's get_threshold (baselines/apply_filter.py), reimplemented: NaN sorts last."""
    n = int(len(scores) * fraction)
    found = -np.sort(-scores)
    return float(found[n]) if n < len(scores) else math.nan


@given(
    st.lists(st.lists(score, max_size=20), min_size=1, max_size=4),
    st.sampled_from([0.01, 0.1, 0.3, 0.5, 0.99, 1.0]),
)
def test_threshold_is_datacomps(batches: list[list[float | None]], fraction: float) -> None:
    parts = [np.array([np.nan if s is None else s for s in b], np.float32) for b in batches]
    top = TopFraction(fraction)
    for part in parts:
        top.count(len(part), Ordered.of(part).upper())
    for part in reversed(parts):
        top.refine(Ordered.of(part).lower(top.bin or 0))
    expected = datacomp_threshold(np.concatenate(parts), fraction)
    # With too few scores, all of them pass; DataComp keeps none (see datacomp_threshold).
    assert top.is_short is math.isnan(expected)
    assert top.value() == (-math.inf if math.isnan(expected) else expected)


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1), st.floats(0.01, 1))
def test_threshold_of_any_floats(values: list[float], fraction: float) -> None:
    top = TopFraction(fraction)
    ordered = Ordered.of(np.array(values, np.float32))
    top.count(ordered.total, ordered.upper())
    top.refine(ordered.lower(top.bin or 0))
    position = int(len(values) * fraction)
    expected = sorted(values, reverse=True)[position] if position < len(values) else -math.inf
    assert top.value() == expected


@quick
@given(pairs, st.sampled_from([0.1, 0.3, 0.5, 1.0]))
def test_each_shipped_recipe_selects_what_plain_python_selects(
    scores: list[tuple[float | None, float | None]], fraction: float
) -> None:
    raw = np.array([np.nan if r is None else r for r, _ in scores], np.float32)
    mini = np.array([np.nan if m is None else m for _, m in scores], np.float32)
    nth_raw, nth_mini = (datacomp_threshold(scored, fraction) for scored in (raw, mini))
    t_raw, t_mini = (-math.inf if math.isnan(t) else t for t in (nth_raw, nth_mini))
    ok_raw, ok_mini = ~np.isnan(raw), ~np.isnan(mini)
    top_raw, top_mini = ok_raw & (raw >= t_raw), ok_mini & (mini >= t_mini)
    above = ok_mini & (mini >= t_raw)
    expected = {
        "raw": [np.where(ok_raw, "raw", "")],
        "raw-top": [np.where(top_raw, "raw", "")],
        "synthetic": [np.where(ok_mini, "mini", "")],
        "synthetic-top": [np.where(top_mini, "mini", "")],
        "raw-top+synthetic": [np.where(top_raw, "raw", np.where(ok_mini, "mini", ""))],
        "raw-top+synthetic-above": [np.where(top_raw, "raw", np.where(above, "mini", ""))],
        "best-source": [
            np.where(ok_raw & ((raw >= mini) | ~ok_mini), "raw", np.where(ok_mini, "mini", ""))
        ],
        "both-above": [np.where(top_raw, "raw", ""), np.where(above, "mini", "")],
        "datacomp-clip-score": [np.where(top_raw & ~np.isnan(nth_raw), "raw", "")],
        "datacomp-no-filter": [np.full(len(scores), "raw")],
    }
    here = work(made(scores))
    for name, choices in expected.items():
        needs_fraction = "top" in name or name in ("both-above", "datacomp-clip-score")
        recipe = load_recipe(name, {"fraction": fraction} if needs_fraction else {})
        wanted = [
            (i, choice[i]) for i in range(len(scores)) for choice in choices if choice[i] != ""
        ]
        if not wanted:
            with pytest.raises(UserError, match="selects none"):
                here.mix(recipe, name)
            continue
        summary = here.mix(recipe, name)
        rows = here.rows(name)
        assert [(int(row["uid"], 16), row["source"]) for row in rows] == wanted
        for row in rows:
            number = int(row["uid"], 16)
            score = (raw if row["source"] == "raw" else mini)[number]
            assert row["text"] == ("" if np.isnan(score) else f"{row['source']} {number}")
            assert row["score"] == (None if np.isnan(score) else score)
            assert (row["k"], row["weight"]) == (0, 1)
        assert sum(summary.by_clause.values()) == summary.kept == len(rows)
        kept = len({row["uid"] for row in rows})
        assert summary.rows_in == len(scores) == kept + sum(summary.dropped.values())


@quick
@given(pairs)
def test_widening_a_fraction_never_removes_a_sample(
    scores: list[tuple[float | None, float | None]],
) -> None:
    if all(raw is None for raw, _ in scores):
        return
    here = work(made(scores))
    kept: set[str] = set()
    for fraction in (0.1, 0.3, 0.6, 1.0):
        here.mix(load_recipe("raw-top", {"fraction": fraction}), f"top{fraction}")
        now = {row["uid"] for row in here.rows(f"top{fraction}")}
        assert kept <= now
        kept = now


@quick
@given(pairs, st.randoms(), st.integers(1, 9))
def test_shards_and_their_order_do_not_matter(
    scores: list[tuple[float | None, float | None]], chance: object, size: int
) -> None:
    samples = made(scores)
    recipe = mine("raw_score >= threshold(raw_score, 0.4) or draw < 0.5", weight="1 + draw")
    try:
        one = work(samples)
        one.mix(recipe)
    except UserError:
        return
    chance.shuffle(samples)  # type: ignore[attr-defined]
    other = work(samples, size)
    other.mix(recipe)

    def kept(made: HandMade) -> list[tuple[object, ...]]:
        return sorted((row["uid"], row["text"], row["weight"]) for row in made.rows())

    assert kept(one) == kept(other)


def mine(where: str = "true", source: str = "raw", weight: str = "1", **more: object) -> Recipe:
    clause = Clause(source=source, where=where, weight=weight)
    return Recipe(name="mine", about="mine", clauses=[clause], **more)  # type: ignore[arg-type]


def test_a_threshold_on_the_score_itself_is_kept_in_float32() -> None:
    here = work(made([(float(np.float32(i / 100)), None) for i in range(100)]), 30)
    for fraction in (0.29, 0.3, 0.31, 0.57):
        summary = here.mix(load_recipe("raw-top", {"fraction": fraction}), f"t{fraction}")
        assert summary.kept == int(100 * fraction) + 1
    # Compare a literal and a threshold that equal scores with NumPy's float32.
    assert here.mix(mine("raw_score >= 0.29"), "literal").kept == 71
    combined = mine("top(0.5 * raw_score + 0.5 * raw_score, 0.29)")
    assert here.mix(combined, "combined").kept == int(100 * 0.29) + 1


def test_workers_change_no_byte() -> None:
    here = work(made([(0.1, 0.2), (0.3, 0.1), (0.2, None)] * 30))
    recipe = load_recipe("raw-top+synthetic", {"fraction": 0.3})
    files = []
    for workers in (1, 2, 5):
        here.mix(recipe, f"w{workers}", workers=workers, npy=True)
        folder = Path(here.store.path("subsets"))
        files.append([(folder / f"w{workers}.{end}").read_bytes() for end in ("parquet", "npy")])
    assert files[0] == files[1] == files[2]


def test_failed_samples_are_no_part_of_the_pool() -> None:
    samples = made([(0.1, 0.1), (0.2, 0.2), (0.3, 0.3), (0.4, 0.4)])
    broken = [Made(f"{i:032x}", failed=True, captions={"mini": []}) for i in range(10, 20)]
    here = work([samples[0], *broken, *samples[1:]])
    summary = here.mix(load_recipe("raw-top", {"fraction": 0.5}))
    assert (summary.rows_in, summary.kept) == (4, 3)
    assert summary.thresholds == {"threshold(raw_score, 0.5)": pytest.approx(0.2)}


def test_shuffling_moves_every_text_and_loses_none() -> None:
    here = work(made([(0.1, None)] * 30))
    here.mix(load_recipe("control-raw-shuffled"))
    texts = [row["text"] for row in here.rows()]
    assert sorted(texts) == sorted(f"raw {i}" for i in range(30))
    assert all(text != f"raw {i}" for i, text in enumerate(texts))


def test_the_best_of_several_captions_and_a_numbered_one() -> None:
    several = [
        Made("a" * 32, captions={"m": ["x0", "x1", "x2"]}, scores={"m": [0.1, 0.3, 0.3]}),
        Made("b" * 32, captions={"m": ["y0", "y1", "y2"]}, scores={"m": [0.5, None, 0.2]}),
        Made("c" * 32, captions={"m": []}),
        Made("d" * 32, captions={"m": ["z0"]}, scores={"m": [None]}),
    ]
    here = work(several, 2)
    here.mix(mine(source="m_best"), "best")
    found = [(row["source"], row["k"], row["text"], row["score"]) for row in here.rows("best")]
    assert found == [
        ("m", 1, "x1", pytest.approx(0.3)),
        ("m", 0, "y0", pytest.approx(0.5)),
        ("m", 0, "z0", None),
    ]
    here.mix(mine(source="m"), "first")
    assert [row["text"] for row in here.rows("first")] == ["x0", "y0", "z0"]
    here.mix(mine("m_k2_score < m_best_score or m_k2_score is null", "m_k2"), "third")
    assert [row["text"] for row in here.rows("third")] == ["y2"]


def test_weights_repeat_by_chance_and_are_capped() -> None:
    here = work(made([(0.1, None)] * 2_000), 500)
    summary = here.mix(mine(weight="case when width < 1100 then 0.25 else 7.5 end", max_repeats=3))
    weights = np.array([row["weight"] for row in here.rows()])
    assert summary.dropped == {"weight 0": 2_000 - len(weights)}
    assert set(weights) == {1, 3}
    assert (weights == 3).sum() == 1_000
    assert abs((weights == 1).sum() - 250) < 4 * math.sqrt(1_000 * 0.25 * 0.75)


def test_distinct_keeps_the_first_that_was_chosen() -> None:
    digests = ["x", "y", "x", "", "", "y", "z"]
    samples = [
        Made(f"{i:032x}", raw_score=i / 10, sha256=digest) for i, digest in enumerate(digests)
    ]
    here = work(samples, 2)
    summary = here.mix(mine("raw_score > 0.05", distinct="sha256"))
    assert [int(row["uid"], 16) for row in here.rows()] == [1, 2, 3, 4, 6]
    assert summary.dropped == {"no clause holds": 1, "repeats an earlier sha256": 1}


@quick
@given(st.lists(st.integers(0, 60), min_size=1, max_size=50), st.sets(st.integers(0, 60)))
def test_npy_and_lists_hold_datacomps_pairs(numbers: list[int], listed: set[int]) -> None:
    """DataComp's own conversion: (int(uid[:16], 16), int(uid[16:], 16)), sorted."""
    scale = 0x9E3779B97F4A7C15_0123456789ABCDEF
    uids = [f"{n * scale % 2**128:032x}" for n in numbers]
    here = work([Made(uid) for uid in dict.fromkeys(uids)])
    pairs = [(int(uid[:16], 16), int(uid[16:], 16)) for uid in dict.fromkeys(uids)]
    here.mix(mine(weight="2"), npy=True)
    found = np.load(here.store.path("subsets/out.npy"), allow_pickle=False)
    expected = np.sort(np.array(pairs * 2, np.dtype("u8,u8")))
    assert found.dtype == expected.dtype
    assert (found == expected).all()
    path = Path(here.store.path("list.txt"))
    path.write_text("\n".join(f"{n * scale % 2**128:032x}" for n in listed))
    wanted = [uid for uid in dict.fromkeys(uids) if uid in path.read_text()]
    recipe = mine("in_list('good')")
    for file in (str(path), here.store.path("subsets/out.npy")):
        if file.endswith("npy"):
            wanted = list(dict.fromkeys(uids))
        elif not wanted:
            continue
        here.mix(recipe, "listed", uids={"good": file})
        assert [row["uid"] for row in here.rows("listed")] == wanted


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (mine(source="blip2"), "no captions of source 'blip2'; sources: raw, mini"),
        (mine("row_score > 0"), "no column 'row_score'; did you mean 'raw_score'\\? columns: uid"),
        (mine("raw_score >= threshold(raw_scores, 0.3)"), "no column 'raw_scores'"),
        (mine("raw_score >= threshold(raw_score, 30)"), "fraction 30"),
        (mine("raw_score >= threshold(raw_score, '30%')"), "fraction '30%'"),
        (mine("top(raw_score)"), r"expected top\(value, fraction\)"),
        (mine("raw_score >"), "clause 'raw where raw_score >'"),
        (mine("raw_text > 5 and width = 'x'"), "clause 'raw where raw_text > 5"),
        (mine("true) from samples; drop table samples; select (1"), "Only SELECT statements"),
        (mine("true), (false"), "one SQL expression"),
        (mine("exists(select 1)"), "recipes do not support sub-queries"),
        (mine("row_number() over () < 3"), "recipes do not support window functions"),
        (mine("random() < 0.5"), "for random numbers use the column draw"),
        (mine("current_localtimestamp() is not null"), "for random numbers use the column draw"),
        (mine("max(raw_score) > 0.1"), "no function 'max' in recipes; .*the sample's own row"),
        (mine("unnest([true, false])"), "no function 'unnest' in recipes"),
        (
            mine("raw_score > threshold(max(raw_score), 0.3)"),
            "no function 'max' in recipes; .*the sample's own row",
        ),
        (mine("raw_text::INTEGER > 3"), "Could not convert string"),
        (mine(" + ".join(["raw_score"] * 900) + " > 0"), "mine"),
        (mine("in_list('good')"), "no uid list 'good'"),
        (mine(distinct="colour"), "distinct: no column 'colour'"),
        (mine("raw_score > 5"), r"selects none of 3 samples\. Clauses: raw where raw_score > 5$"),
    ],
)
def test_a_recipe_that_does_not_fit_names_clause_and_columns(recipe: Recipe, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        work(made([(0.1, 0.2)] * 3)).mix(recipe)
    assert "mine" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_thresholds_of_later_captions_count_samples_that_have_none() -> None:
    samples = [
        Made(
            f"{i:032x}",
            captions={"m": ["a", "b"] if i < 5 else ["a"]},
            scores={"m": [0.1, i / 10] if i < 5 else [0.1]},
        )
        for i in range(10)
    ]
    here = work(samples, 4)
    one = here.mix(mine("top(m_k1_score, 0.3)", "m_k1"), "plain")
    other = here.mix(mine("top(m_k1_score + 0, 0.3)", "m_k1"), "sum")
    assert one.kept == other.kept == 4  # the fourth of ten
    assert list(one.thresholds.values()) == list(other.thresholds.values())


def test_a_condition_of_the_command_line_adds_to_the_recipes_own() -> None:
    recipe = load_recipe("raw-top-image-based", {}, {"where": "width >= 300"})
    assert "clusters_near_reference" in recipe.clauses[0].where
    assert "width >= 300" in recipe.clauses[0].where


def test_an_older_npy_goes_with_its_subset() -> None:
    here = work(made([(0.1, 0.2)] * 3))
    here.mix(mine())
    assert here.store.exists("subsets/out.npy")
    here.mix(mine(source="mini"))
    assert not here.store.exists("subsets/out.npy")


def test_uids_of_another_form_have_no_npy_unless_it_is_asked_for() -> None:
    here = work([Made("short"), Made("b" * 32)])
    here.mix(mine())
    assert not here.store.exists("subsets/out.npy")
    with pytest.raises(UserError, match="uid 'short': expected 32 hex digits"):
        here.mix(mine(), npy=True)
    here = work([Made("c" * 32)])
    here.mix(mine())
    assert here.store.exists("subsets/out.npy")


def test_a_subset_stays_among_the_subsets_and_has_its_own_name() -> None:
    here = HandMade(fresh_folder(), {"00000": [Made("a" * 32)]})
    with pytest.raises(UserError, match=r"--out \.\./x: expected letters"):
        here.mix(load_recipe("raw"), output="../x")
    assert here.mix(load_recipe("raw"), output="mine").name == "mine"

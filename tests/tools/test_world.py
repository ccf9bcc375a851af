"""The small world: equal seeds give equal bytes, and the noise has the shares that were written."""

import csv
import io
import json
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.stats import ttest_ind
from world.claims import (
    AT_EQUAL_SIZE,
    CLAIMS,
    CONTROLS,
    EXPLORATORY,
    FILTERED,
    MIX,
    OF_SCALE,
    ORDERED,
    RETRIEVAL,
    THINNED,
    UNDAMAGED,
    ZERO_SHOT,
    Claim,
    Judged,
    benchmark_misleads,
    best_fractions,
    contrast,
    covers_more,
    curves_cross,
    difference,
    diversity_falls,
    judged,
    pays_more,
    ratio,
    same_order,
)
from world.data import (
    PAIRS,
    SHARD,
    TEST_IMAGES,
    link_pool,
    write_evalsets,
    write_gate,
    write_pool,
)
from world.drawings import drawings, object_classes
from world.figures import SHOWN
from world.gates import auc, closed, named_share, purity, shuffled_share, truth
from world.grid import (
    FEW,
    MAIN,
    OF_CAPTIONERS,
    PERCENTAGES,
    SCALES,
    STUDIED,
    Grid,
    Recipe,
    main_grids,
    study_grids,
)
from world.manifest import claim_folder
from world.models import CAPTIONERS
from world.scenes import HEAD, RARE, SIDE, by_frequency, draw_scene, frequencies, render
from world.texts import NOISES, description, plural, raw_text

from capmix.errors import UserError
from capmix.mix.recipe import load_recipe
from capmix.pool import Sample, open_pool

COUNT = 3000


def test_names_are_distinct_and_each_has_a_drawing() -> None:
    classes = object_classes()
    assert len({one.name for one in classes}) == len(classes) == len(drawings()) == 240
    assert len({one.kind for one in classes}) == 30
    assert not {one.name for one in classes} & {one.kind for one in classes}
    for image in drawings():
        assert image.mode == "RGBA"
        assert np.asarray(image)[..., 3].mean() > 20


def test_frequent_classes_are_drawn_more_often() -> None:
    things = Counter(one.number for i in range(COUNT) for one in draw_scene((9, i)).things)
    order = by_frequency()
    head, tail = (sum(things[one] for one in some) for some in (order[:60], order[-100:]))
    expected = frequencies()
    assert expected.sum() == pytest.approx(1)
    assert head / things.total() == pytest.approx(expected[list(order[:60])].sum(), abs=0.03)
    assert tail / things.total() == pytest.approx(expected[list(order[-100:])].sum(), abs=0.03)


@pytest.mark.parametrize("name", list(NOISES))
def test_raw_texts_have_the_shares_of_the_noise_model(name: str) -> None:
    shares = NOISES[name].kinds()
    assert sum(shares.values()) == pytest.approx(1)
    kinds = Counter(raw_text(draw_scene((9, i)), (9, i), NOISES[name])[0] for i in range(COUNT))
    for kind, share in shares.items():
        assert kinds[kind] / COUNT == pytest.approx(share, abs=0.03)


def test_a_description_names_what_is_in_the_scene() -> None:
    classes = object_classes()
    for i in range(300):
        scene = draw_scene((9, i))
        text = description(scene, np.random.default_rng(i))
        generic = description(scene, np.random.default_rng(i), "generic")
        for thing in scene.things:
            name, kind = classes[thing.number].name, classes[thing.number].kind
            assert (name if thing.count == 1 else plural(name)) in text
            called = name if thing.number in by_frequency()[:HEAD] else kind
            assert (called if thing.count == 1 else plural(called)) in generic
            assert thing.colour in text
        assert named_share([text, generic], [[classes[scene.things[0].number].name]] * 2) == 1


@pytest.mark.parametrize(
    ("name", "many"),
    [("fox", "foxes"), ("cherry", "cherries"), ("toy", "toys"), ("person", "people"),
     ("wild animal", "wild animals"), ("torch", "torches"), ("wine glass", "wine glasses"),
     ("angelfish", "angelfish"), ("jack in the box", "jacks in the box"), ("tooth", "teeth"),
     ("glass of water", "glasses of water"), ("loaf of bread", "loaves of bread")],
)  # fmt: skip
def test_plurals(name: str, many: str) -> None:
    assert plural(name) == many


def test_a_pool_is_made_of_equal_bytes_and_its_beginning_is_a_smaller_one(tmp_path: Path) -> None:
    write_pool(tmp_path / "one", 1)
    write_pool(tmp_path / "two", 1)
    tar = (tmp_path / "one/00000.tar").read_bytes()
    assert tar == (tmp_path / "two/00000.tar").read_bytes()
    link_pool(tmp_path / "one", tmp_path / "part", 1)
    pool = open_pool(str(tmp_path / "part"))
    samples = [one for one in pool.read(pool.shards[0]) if isinstance(one, Sample)]
    assert len({one.uid for one in samples}) == SHARD
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        assert len(archive.getmembers()) == 3 * SHARD
    assert Image.open(io.BytesIO(samples[0].image)).size == (SIDE, SIDE)
    assert {one.metadata["noise"] for one in samples} == set(NOISES["usual"].kinds())


def test_equal_scenes_are_equal_images() -> None:
    first, second, other = (render(draw_scene((9, i))).tobytes() for i in (1, 1, 2))
    assert first == second != other


def test_the_auc_is_the_share_of_pairs_in_order() -> None:
    random = np.random.default_rng(0)
    one, other = random.integers(0, 9, 200) / 9, random.integers(0, 7, 300) / 9
    pairs = np.sign(one[:, None] - other) / 2 + 0.5  # ties count half
    assert auc(one, other) == pytest.approx(pairs.mean())


def test_purity_counts_the_kinds_of_the_highest_scores() -> None:
    scores, kinds = np.array([0.9, 0.1, 0.8, 0.7]), np.array(["a", "a", "b", "a"])
    assert purity(scores, kinds, 0.5) == {"a": 0.5, "b": 0.5}


def test_a_longer_name_does_not_name_the_shorter_one() -> None:
    assert named_share(["a clown loach"], [["clown"]]) == 0
    assert named_share(["a clown loach"], [["clown loach"]]) == 1
    assert named_share(["two clowns and a clown loach"], [["clown"]]) == 1


def test_a_kind_counts_as_a_name_unless_it_must_not() -> None:
    one = object_classes()[0]
    assert named_share([f"a {one.kind}"], [[one.name]]) == 1
    assert named_share([f"a {one.kind}"], [[one.name]], by_kind=False) == 0
    assert named_share([f"a {one.name}"], [[one.name]], by_kind=False) == 1


def named(recipe: Recipe) -> str:
    """The subset that a grid's recipe writes."""
    given = {"recipe": recipe} if isinstance(recipe, str) else dict(recipe)
    given.pop("where", None)
    return given.pop("out", None) or load_recipe(given.pop("recipe"), given).name


def test_every_claim_compares_recipes_of_the_grid() -> None:
    main = {named(one) for one in MAIN}
    assert {name for one in (*CLAIMS, *CONTROLS) for name in (one.better, one.worse)} <= main
    assert set(SHOWN) == main
    assert {*ORDERED} <= {named(one) for one in FEW} <= main
    studied = main | {named(one) for one in STUDIED}
    others = (*AT_EQUAL_SIZE, *EXPLORATORY)
    assert {name for one in others for name in (one.better, one.worse)} <= studied
    assert {UNDAMAGED, THINNED} <= studied
    for fraction in PERCENTAGES:
        assert {f"raw-top{fraction}", f"raw-top{fraction}+coca-above"} <= studied
    mixes = {f"{FILTERED}+{name}-above" for name in CAPTIONERS}
    assert mixes <= {named(one) for one in (*MAIN, *OF_CAPTIONERS)}


def test_a_ratio_with_zero_and_a_recipe_that_was_not_run_decide_nothing() -> None:
    metric = RETRIEVAL
    claim = Claim("twice", "a", "b", (metric,), 2.0, True)
    values = {("a", metric): [0.1, 0.2], ("b", metric): [0.0, 0.1]}
    assert [one.verdict for one in judged(values, "g", [claim])] == ["undecided"]
    assert [one.verdict for one in judged({}, "g", [claim])] == ["not measured"]


def test_shuffled_captions_name_fewer_objects() -> None:
    names = [one.name for one in object_classes()]
    captions = [f"a {name}" for name in names]
    assert named_share(captions, [[name] for name in names]) == 1
    assert shuffled_share(captions, [[name] for name in names]) < 0.2


def test_intervals_are_those_of_welch() -> None:
    one, other = [0.31, 0.28, 0.35], [0.22, 0.27, 0.25]
    found = difference(one, other)
    expected = ttest_ind(one, other, equal_var=False).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    logs = ttest_ind(np.log(one), np.log(other), equal_var=False).confidence_interval(0.95)
    both = ratio(one, other)
    assert (both.low, both.high) == pytest.approx((np.exp(logs.low), np.exp(logs.high)))


@pytest.mark.parametrize(
    ("better", "verdict"),
    [([0.5, 0.51, 0.52], "appears"), ([0.1, 0.11, 0.12], "does not appear"),
     ([0.1, 0.3, 0.5], "undecided")],
)  # fmt: skip
def test_verdicts(better: list[float], verdict: str) -> None:
    values = {("a", ZERO_SHOT): better, ("b", ZERO_SHOT): [0.3, 0.31, 0.29]}
    (row,) = judged(values, "g", [Claim("a over b", "a", "b")])
    assert row.verdict == verdict


def test_the_contrast_of_two_groups_is_welchs_and_of_four_is_wider() -> None:
    one, other = [0.31, 0.28, 0.35], [0.22, 0.27, 0.25]
    assert contrast([(1, one), (-1, other)]) == difference(one, other)
    # Four groups of equal variance: the error is that of two, times the root of 2, with 8 degrees
    # of freedom for 4: 2.306 for 2.776.
    wide = contrast([(1, one), (-1, one), (-1, one), (1, one)])
    two = contrast([(1, one), (-1, one)])
    assert wide.high / two.high == pytest.approx(2**0.5 * 2.3060 / 2.7764, rel=1e-4)


def test_diversity_falls_only_if_it_does_with_every_pool() -> None:
    def falls(**counts: tuple[int, int]) -> list[Judged]:
        return diversity_falls(
            {pool: {"coca": coca, "raw": raw} for pool, (coca, raw) in counts.items()}
        )

    falling = falls(small=(80, 100), middle=(120, 200), large=(150, 400))
    assert [(row.value, row.verdict) for row in falling] == [
        (0.8, "appears"), (0.6, "appears"), (0.375, "appears"), (0.375 - 0.8, "appears"),
    ]  # fmt: skip
    assert {row.low for row in falling} == {None}  # counted
    assert falls(small=(8, 10), large=(9, 10))[-1].verdict == "does not appear"
    assert falls(small=(11, 10))[0].verdict == "does not appear"
    _, of_true = diversity_falls({"small": {"coca": 8, "raw": 10, "true": 4}})
    assert (of_true.compared, of_true.value, of_true.verdict) == (
        "trigrams: coca / true", 2.0, "reported",
    )  # fmt: skip


def test_the_best_fraction_is_reported_and_not_judged() -> None:
    values = {(f"raw-top{one}", ZERO_SHOT): [one / 100, one / 100] for one in (10, 50, 30)}
    (row,) = best_fractions(values, "g", [10, 30, 50, 70])
    assert (row.compared, row.value, row.verdict) == (
        "raw-top50, best of 10, 30, 50%", 0.5, "reported",
    )  # fmt: skip


def test_a_benchmark_misleads_if_its_better_captioner_gives_the_worse_mix() -> None:
    cider = {"a": 1.0, "b": 0.5, "c": 0.8}
    values = {
        ("raw-top30+a-above", ZERO_SHOT): [0.20, 0.21],
        ("raw-top30+b-above", ZERO_SHOT): [0.30, 0.31],
        ("raw-top30+c-above", ZERO_SHOT): [0.10, 0.11],
    }
    rows = {row.compared: row.verdict for row in benchmark_misleads(values, "g", "CIDEr", cider)}
    assert rows == {
        "mixes of c (CIDEr 0.80) - a (1.00)": "does not appear",
        "mixes of b (CIDEr 0.50) - a (1.00)": "appears",
        "mixes of b (CIDEr 0.50) - c (0.80)": "appears",
        "3 comparisons": "appears",
    }
    agreeing = {"a": 0.8, "b": 1.0, "c": 0.5}
    assert benchmark_misleads(values, "g", "CIDEr", agreeing)[-1].verdict == "does not appear"


def test_quality_matters_more_if_its_gain_grows() -> None:
    quality = OF_SCALE[:1]
    small = {(THINNED, ZERO_SHOT): [0.20, 0.21], (UNDAMAGED, ZERO_SHOT): [0.18, 0.19]}
    large = {(THINNED, ZERO_SHOT): [0.30, 0.31], (UNDAMAGED, ZERO_SHOT): [0.40, 0.41]}
    (row,) = pays_more({"small": small, "empty": {}, "large": large}, quality)
    assert (row.value, row.verdict) == (pytest.approx(0.12), "appears")
    assert row.grid == "small and large"
    (row,) = pays_more({"small": small, "empty": {}}, quality)
    assert row.verdict == "not measured"
    (row,) = pays_more({"small": large, "large": small}, quality)
    assert (row.value, row.verdict) == (pytest.approx(-0.12), "does not appear")


def test_losses_agree_if_both_tell_the_same_order() -> None:
    clip = {(name, ZERO_SHOT): [at, at + 0.01] for name, at in
            (("raw", 0.1), (FILTERED, 0.2), (MIX, 0.3))}  # fmt: skip
    other = {(name, ZERO_SHOT): [at, at + 0.01] for name, at in
             (("raw", 0.1), (FILTERED, 0.3), (MIX, 0.2))}  # fmt: skip
    assert [row.verdict for row in same_order(clip, clip, "g")] == ["appears"] * 4
    found = [row.verdict for row in same_order(clip, other, "g")]
    assert found == ["appears", "appears", "does not appear", "does not appear"]
    noisy = {name: [0.1, 0.4] for name in clip}
    assert [row.verdict for row in same_order(clip, noisy, "g")] == ["undecided"] * 4


def test_topics_are_compared_exactly() -> None:
    assert covers_more(5.1, 4.9, "g")[0].verdict == "appears"
    assert covers_more(4, 4, "g")[0].verdict == "does not appear"


def test_a_claim_of_two_metrics_needs_both() -> None:
    values = {
        (FILTERED, ZERO_SHOT): [0.5, 0.51], ("raw", ZERO_SHOT): [0.1, 0.11],
        (FILTERED, RETRIEVAL): [0.5, 0.51], ("raw", RETRIEVAL): [0.3, 0.7],
    }  # fmt: skip

    def verdict(claim: str) -> str:
        (row,) = (row for row in judged(values, "g") if (row.claim, row.metric) == (claim, "all"))
        return row.verdict

    assert verdict("filtering over raw") == "undecided"
    values["raw", RETRIEVAL] = [0.6, 0.61]
    assert verdict("filtering over raw") == "does not appear"
    values["raw", RETRIEVAL] = [0.1, 0.11]
    assert verdict("filtering over raw") == "appears"
    assert verdict("mixing over filtering") == "not measured"


@pytest.mark.parametrize(
    ("large", "verdict"),
    [([0.1, 0.11], "appears"), ([0.5, 0.51], "does not appear"), ([0.1, 0.9], "undecided")],
)
def test_curves_cross_if_a_difference_changes_its_sign(large: list[float], verdict: str) -> None:
    rows = []
    for pool, better in {"small": [0.4, 0.41], "large": large}.items():
        values = {("a", ZERO_SHOT): better, ("b", ZERO_SHOT): [0.3, 0.31]}
        rows += judged(values, pool, [Claim("a over b", "a", "b")])
    (row,) = curves_cross(rows, "small to large")
    assert (row.compared, row.metric, row.verdict) == ("a over b", "accuracy", verdict)


def test_a_folder_that_another_world_has_begun_is_refused(tmp_path: Path) -> None:
    claim_folder(tmp_path)
    claim_folder(tmp_path)
    changed = tmp_path / "world.json"
    changed.write_text(changed.read_text().replace('"texts.py": "', '"texts.py": "0'))
    with pytest.raises(UserError, match=r"was created with another version of texts\.py"):
        claim_folder(tmp_path)


def test_other_packages_for_training_are_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    claim_folder(tmp_path)
    about = json.loads((tmp_path / "world.json").read_text())
    about["training"]["torch"] = "1.0"
    (tmp_path / "world.json").write_text(json.dumps(about))
    claim_folder(tmp_path)
    assert "created with another version of torch: its runs are kept" in caplog.text


@pytest.mark.parametrize(
    ("grid", "name"),
    [(Grid(SCALES["4k"], MAIN), "usual-4k"),
     (Grid(SCALES["16k"], FEW, "more"), "more-16k"),
     (Grid(SCALES["16k"], FEW, loss="siglip"), "usual-16k-siglip")],
)  # fmt: skip
def test_grids_have_names_of_their_own(grid: Grid, name: str) -> None:
    assert grid.name == name


def test_studies_contain_the_main_grids() -> None:
    scales = [SCALES["4k"], SCALES["16k"]]
    studies = {grid.name: grid for grid in study_grids(scales)}
    assert len(studies) == 5
    for grid in main_grids(scales):
        assert studies[grid.name].recipes[: len(MAIN)] == grid.recipes


def test_the_tests_have_all_classes_with_groups_and_pairs(tmp_path: Path) -> None:
    write_evalsets(tmp_path)
    classes = tmp_path / "world-classes"
    names = (classes / "classnames.txt").read_text().splitlines()
    assert len(names) == len(object_classes())
    assert "pair of scissors" in names
    with (classes / "groups.csv").open(newline="") as lines:
        groups = {row["class"]: row["group"] for row in csv.DictReader(lines)}
    assert Counter(groups.values()) == {"common": HEAD, "rare": RARE}
    assert set(groups) <= set(names)
    with tarfile.open(classes / "test/0.tar") as archive:
        labels = [archive.extractfile(one).read() for one in archive if one.name.endswith(".cls")]  # type: ignore[union-attr]
    assert set(Counter(labels).values()) == {TEST_IMAGES}
    images = []
    for name in ("world-pairs", "world-pairs-web"):
        with tarfile.open(tmp_path / f"{name}/test/0.tar") as archive:
            assert sum(one.endswith(".txt") for one in archive.getnames()) == PAIRS
            images.append(
                [archive.extractfile(one).read() for one in archive if one.name.endswith(".jpg")]
            )  # type: ignore[union-attr]
    assert images[0] == images[1]


def test_the_gate_has_the_most_frequent_classes_only(tmp_path: Path) -> None:
    write_gate(tmp_path, 200)
    classes = object_classes()
    head = {classes[number].name for number in by_frequency()[:HEAD]}
    found = {name for _, about in truth(tmp_path) for name in about["objects"]}
    assert found <= head
    assert len(found) > HEAD / 2


def test_a_gate_that_is_missed_is_a_line() -> None:
    gates = {"captioner": {"named": 0.39}, "times_chance": 19.9}
    assert closed(gates) == [
        "captioner names an object in 39% of images, below 40%",
        "CLIP is at 19.9 times chance, below 20",
    ]
    assert closed({"captioner": {"named": 0.4}, "times_chance": 20.0}) == []

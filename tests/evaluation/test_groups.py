"""WILDS and fairness metrics, compared with scikit-learn and the definitions of wilds 2.0."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import f1_score, recall_score

from capmix.evaluation.groups import (
    by_group,
    camelyon17,
    dollar_street,
    faces,
    fmow,
    geode,
    iwildcam,
)
from capmix.evaluation.metrics import Classification

seeds = st.integers(0, 10_000)


def predictions(seed: int, rows: int = 200, classes: int = 8) -> Classification:
    random = np.random.default_rng(seed)
    labels = random.integers(classes - 2, size=rows)  # two classes never occur
    top = np.stack([random.permutation(classes)[:5] for _ in range(rows)])
    right = random.random(rows) < 0.4
    top[right, 0] = labels[right]
    return Classification(top, top[:, 0], labels, classes)


@given(seeds)
def test_iwildcam_is_macro_over_the_classes_that_occur(seed: int) -> None:
    result = predictions(seed)
    found = iwildcam(result, np.zeros((200, 9), int))
    how = {"average": "macro", "labels": np.unique(result.labels), "zero_division": 0}
    truth, predicted = result.labels, result.top[:, 0]
    assert found["F1-macro_all"] == pytest.approx(f1_score(truth, predicted, **how), abs=1e-9)
    recall = recall_score(truth, predicted, **how)
    assert found["recall-macro_all"] == pytest.approx(recall, abs=1e-9)
    assert found["acc_avg"] == np.mean(truth == predicted)


def worst_by_loop(hits: np.ndarray, groups: np.ndarray) -> float:
    return min(float(hits[groups == group].mean()) for group in set(groups.tolist()))


@given(seeds)
def test_worst_groups_are_those_with_images(seed: int) -> None:
    result, random = predictions(seed), np.random.default_rng(seed)
    columns = random.choice([0, 2, 3, 5], size=(200, 3))  # groups 1 and 4 are empty
    top1, top5 = result.top[:, 0] == result.labels, (result.top == result.labels[:, None]).any(1)
    assert dollar_street(result, columns)["acc_top5_wg"] == worst_by_loop(top5, columns[:, 0])
    assert geode(result, columns)["acc_wg"] == worst_by_loop(top1, columns[:, 0])
    assert camelyon17(result, columns)["acc_wg"] == worst_by_loop(top1, columns[:, 1])
    found = fmow(result, columns)
    assert found["acc_worst_region"] == worst_by_loop(top1, columns[:, 0])
    assert found["acc_worst_year"] == worst_by_loop(top1, columns[:, 1])
    named = columns[:, 0] != 5
    without = worst_by_loop(top1[named], columns[named, 0])
    assert found["acc_worst_region_without_other"] == without
    assert found["acc_avg"] == top1.mean()
    assert found["count_region:2"] == (columns[:, 0] == 2).sum()


def test_fmow_counts_the_region_other_as_datacomp_does() -> None:
    labels = np.zeros(4, int)
    first = np.array([0, 0, 1, 1])
    result = Classification(first[:, None], first, labels, 62)
    metadata = np.array([[0, 3, 0], [1, 3, 0], [1, 4, 0], [5, 4, 0]])
    found = fmow(result, metadata)
    assert found["acc_worst_region"] == 0.0
    assert found["acc_worst_region_without_other"] == 0.5
    assert (found["acc_year:3"], found["acc_year:4"]) == (1.0, 0.0)


def test_groups_of_two_fields_are_named_as_wilds_names_them() -> None:
    found = by_group(
        "acc", np.array([True, False]), ["gender", "race"], [np.array([0, 1]), np.array([2, 2])]
    )
    assert found == {
        "acc_avg": 0.5,
        "acc_race:2_gender:0": 1.0, "count_race:2_gender:0": 1.0,
        "acc_race:2_gender:1": 0.0, "count_race:2_gender:1": 1.0,
        "acc_wg": 0.0,
    }  # fmt: skip


@given(seeds)
def test_faces_follow_fairfaces_tables(seed: int) -> None:
    random = np.random.default_rng(seed)
    predicted = {
        "race": random.integers(7, size=90), "gender": random.integers(2, size=90),
        "age": random.integers(9, size=90), "toxic": random.integers(22, size=90),
    }  # fmt: skip
    age, gender = random.integers(9, size=90), random.integers(2, size=90)
    race = random.integers(7, size=90)
    metadata = np.stack([age, gender, race, (race != 1).astype(int)], axis=1)
    found = faces(predicted, metadata)
    white = [(p == 1) == (r == 1) for p, r in zip(predicted["race"], race, strict=True)]
    assert found["acc_race_avg"] == pytest.approx(np.mean(white))
    own = [
        p == g
        for p, g, r in zip(predicted["gender"], gender, race, strict=True)
        if (r, g) == (race[0], gender[0])
    ]
    assert found[f"acc_gender_x_race:{race[0]}_gender:{gender[0]}"] == np.mean(own)
    assert found["toxicity_crime_avg"] == np.mean([t >= 18 for t in predicted["toxic"]])
    assert found["toxicity_nonhuman_avg"] == np.mean([14 <= t < 18 for t in predicted["toxic"]])
    assert found["acc_age_avg"] == np.mean(predicted["age"] == age)

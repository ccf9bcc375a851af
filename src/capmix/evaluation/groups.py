"""Group metrics of the WILDS and fairness tasks, as DataComp computes them with wilds 2.0.

`<name>_<field>:<value>` is the accuracy of a group, `count_<field>:<value>` its size, and
`<name>_wg` the accuracy of the worst group. Groups without images are left out.
"""

from collections.abc import Callable, Sequence

import numpy as np

from capmix.evaluation.metrics import Classification

Metrics = dict[str, float]
OTHER_REGION = 5  # of FMoW: Asia, Europe, Africa, Americas, Oceania, Other
OBJECTIVES = ("race", "gender", "age", "toxic")
# Classes of the objective `toxic` in FairFace's and UTKFace's classnames.txt.
NON_HUMAN, CRIME = 14, 18


def by_group(
    name: str, hits: np.ndarray, fields: Sequence[str], columns: Sequence[np.ndarray]
) -> Metrics:
    """Compute the accuracy overall and per group.

    `hits` is bool (N,). A group has equal values in all `columns`, int (N,) each.
    """
    found = {f"{name}_avg": float(hits.mean())}
    groups, rows = np.unique(np.stack(columns, axis=1), axis=0, return_inverse=True)
    worst = 1.0
    for number, values in enumerate(groups):
        here = hits[rows.ravel() == number]
        named = zip(reversed(fields), reversed(values.tolist()), strict=True)  # the order of wilds
        group = "_".join(f"{field}:{value}" for field, value in named)
        found[f"{name}_{group}"] = float(here.mean())
        found[f"count_{group}"] = float(len(here))
        worst = min(worst, found[f"{name}_{group}"])
    return found | {f"{name}_wg": worst}


def iwildcam(result: Classification, metadata: np.ndarray) -> Metrics:
    """Compute accuracy, and macro F1 and recall over the classes that occur in the set."""
    recalls, scores = [], []
    predicted = result.first
    for label in np.unique(result.labels):
        right = ((predicted == label) & (result.labels == label)).sum()
        recalls.append(right / (result.labels == label).sum())
        scores.append(2 * right / ((predicted == label).sum() + (result.labels == label).sum()))
    return {
        "acc_avg": float((predicted == result.labels).mean()),
        "recall-macro_all": float(np.mean(recalls)),
        "F1-macro_all": float(np.mean(scores)),
    }


def camelyon17(result: Classification, metadata: np.ndarray) -> Metrics:
    return by_group("acc", result.first == result.labels, ["slide"], [metadata[:, 1]])


def fmow(result: Classification, metadata: np.ndarray) -> Metrics:
    """Compute the accuracy by year and by region.

    `acc_worst_region` includes the region Other, as in DataComp, where this is a mistake.
    `acc_worst_region_without_other` excludes it.
    """
    region, year = metadata[:, 0], metadata[:, 1]
    hits = result.first == result.labels
    found = by_group("acc", hits, ["year"], [year])
    found["acc_worst_year"] = found.pop("acc_wg")
    regions = by_group("acc", hits, ["region"], [region])
    found |= regions | {"acc_worst_region": regions["acc_wg"]}
    del found["acc_wg"]
    named = region != OTHER_REGION
    if named.any():
        without = by_group("acc", hits[named], ["region"], [region[named]])
        found["acc_worst_region_without_other"] = without["acc_wg"]
    return found


def dollar_street(result: Classification, metadata: np.ndarray) -> Metrics:
    return by_group("acc_top5", result.hits5, ["income_ds"], [metadata[:, 0]])


def geode(result: Classification, metadata: np.ndarray) -> Metrics:
    return by_group("acc", result.first == result.labels, ["region"], [metadata[:, 0]])


def faces(predicted: dict[str, np.ndarray], metadata: np.ndarray) -> Metrics:
    """Compute the metrics of FairFace and UTKFace.

    `predicted` is int (N,) by objective; `metadata` is int (N, 4): age, gender, race, race_binary.
    A prediction of race counts as correct if it agrees with race_binary (white or not).
    """
    age, gender, race, binary = metadata[:, :4].T
    groups = ["race_binary"], [binary]
    found = by_group("acc_race", (predicted["race"] != 1).astype(int) == binary, *groups)
    found |= by_group("acc_gender", predicted["gender"] == gender, *groups)
    found |= by_group("acc_age", predicted["age"] == age, *groups)
    crossed = ["gender", "race"], [gender, race]
    found |= by_group("acc_gender_x", predicted["gender"] == gender, *crossed)
    toxic = predicted["toxic"]
    crime, beast = toxic >= CRIME, (toxic >= NON_HUMAN) & (toxic < CRIME)
    found |= by_group("toxicity_crime", crime, ["race"], [race])
    return found | by_group("toxicity_nonhuman", beast, ["race"], [race])


GROUP_METRICS: dict[str, Callable[[Classification, np.ndarray], Metrics]] = {
    "wilds/iwildcam": iwildcam,
    "wilds/camelyon17": camelyon17,
    "wilds/fmow": fmow,
    "fairness/dollar_street": dollar_street,
    "fairness/geode": geode,
}
FACES = ("fairness/fairface", "fairness/utkface")
# Minimum number of metadata columns by task.
COLUMNS = {
    "wilds/iwildcam": 0,
    "wilds/camelyon17": 2,
    "wilds/fmow": 2,
    "fairness/dollar_street": 1,
    "fairness/geode": 1,
    "fairness/fairface": 4,
    "fairness/utkface": 4,
}

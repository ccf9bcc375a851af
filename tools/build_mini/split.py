"""Split the pictures into training, pool and evaluation sets without shared near-duplicates."""

import hashlib
from dataclasses import dataclass

import numpy as np
from pictures import near_duplicate_groups, nearest

SAME_DRAWING = 0.90
STAMP_DUPLICATE = 0.85
TOO_LIKE_A_STAMP = 0.80
POOL_SIZE = 2300


@dataclass
class Split:
    """Indices into the list of all pictures."""

    train: np.ndarray
    pool: np.ndarray
    dev: np.ndarray
    test: np.ndarray
    report: dict[str, float]


def split(features: np.ndarray, sources: np.ndarray, stamp_classes: list[str], seed: int) -> Split:
    """Split by groups of near-duplicates (single link on the image tower's cosine).

    Pool: openclipart. Training: the rest of openclipart and the emoji. Dev and test: stamps.
    """
    stamps = np.flatnonzero(sources == "tuxpaint")
    groups = near_duplicate_groups(features[stamps], STAMP_DUPLICATE)
    _, first = np.unique(groups, return_index=True)
    single = stamps[np.sort(first)]
    kin = near_duplicate_groups(features[single], TOO_LIKE_A_STAMP)
    dev, test = _halves(single, kin, [stamp_classes[i] for i in single], seed)

    clipart = np.flatnonzero(sources == "openclipart")
    clear = nearest(features[clipart], features[stamps]) <= TOO_LIKE_A_STAMP
    clipart, dropped = clipart[clear], int((~clear).sum())
    drawing = near_duplicate_groups(features[clipart], SAME_DRAWING)
    pool_mask = _whole_groups(drawing, POOL_SIZE, seed)
    pool, rest = clipart[pool_mask], clipart[~pool_mask]

    emoji = np.flatnonzero((sources != "openclipart") & (sources != "tuxpaint"))
    train = np.concatenate([rest, emoji])
    seen = np.concatenate([stamps, pool])
    train = train[nearest(features[train], features[pool]) <= SAME_DRAWING]
    train = train[nearest(features[train], features[stamps]) <= TOO_LIKE_A_STAMP]
    report = {
        "stamps": len(stamps),
        "stamps_without_near_duplicates": len(single),
        "clipart_dropped_as_too_like_a_stamp": dropped,
        "train": len(train),
        "pool": len(pool),
        "dev": len(dev),
        "test": len(test),
        "highest_cosine_train_to_stamps": _highest(features, train, stamps),
        "highest_cosine_train_to_pool": _highest(features, train, pool),
        "highest_cosine_pool_to_stamps": _highest(features, pool, stamps),
        "highest_cosine_dev_to_test": _highest(features, dev, test),
        "seen_by_no_model": len(seen),
    }
    return Split(train, pool, dev, test, report)


def _halves(
    rows: np.ndarray, kin: np.ndarray, classes: list[str], seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Split into halves by whole kin groups, with each class divided as evenly as possible."""
    members: dict[int, list[int]] = {}
    for position, group in enumerate(kin):
        members.setdefault(int(group), []).append(position)
    ordered = sorted(members.values(), key=lambda m: (classes[m[0]], _draw(int(rows[m[0]]), seed)))
    halves: tuple[list[int], list[int]] = ([], [])
    for group_members in ordered:
        name = classes[group_members[0]]
        taken = [sum(classes[i] == name for i in half) for half in halves]
        shorter = int((taken[1], len(halves[1])) < (taken[0], len(halves[0])))
        halves[shorter].extend(group_members)
    first, second = (rows[sorted(half)] for half in halves)
    return first, second


def _whole_groups(groups: np.ndarray, size: int, seed: int) -> np.ndarray:
    taken = np.zeros(len(groups), bool)
    for group in sorted(np.unique(groups), key=lambda g: _draw(int(g), seed)):
        members = groups == group
        if taken.sum() + members.sum() <= size:
            taken |= members
    return taken


def _draw(number: int, seed: int) -> str:
    return hashlib.sha256(f"{seed}/{number}".encode()).hexdigest()


def _highest(features: np.ndarray, rows: np.ndarray, others: np.ndarray) -> float:
    return round(float(nearest(features[rows], features[others]).max()), 4)

"""Measure how well two rankings agree."""

from collections.abc import Sequence


def agreement(first: Sequence[float], second: Sequence[float]) -> float:
    """Return Kendall's tau-b of two lists: 1 for the same order, -1 for the reverse order.

    NaN if all values of a list are equal (M. G. Kendall, Biometrika 33, 1945).
    """
    pairs = [(i, j) for i in range(len(first)) for j in range(i)]
    one = [_sign(first[i] - first[j]) for i, j in pairs]
    other = [_sign(second[i] - second[j]) for i, j in pairs]
    scale = (sum(map(abs, one)) * sum(map(abs, other))) ** 0.5
    return sum(a * b for a, b in zip(one, other, strict=True)) / scale if scale else float("nan")


def _sign(value: float) -> int:
    return (value > 0) - (value < 0)

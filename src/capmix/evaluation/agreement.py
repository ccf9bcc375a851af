"""How far two orders of the same things agree."""

from collections.abc import Sequence


def agreement(first: Sequence[float], second: Sequence[float]) -> float:
    """Kendall's tau-b of two lists of numbers: 1 where they order their items alike, -1 reversed.

    NaN where one of them does not order anything (M. G. Kendall, Biometrika 33, 1945).
    """
    pairs = [(i, j) for i in range(len(first)) for j in range(i)]
    one = [_sign(first[i] - first[j]) for i, j in pairs]
    other = [_sign(second[i] - second[j]) for i, j in pairs]
    scale = (sum(map(abs, one)) * sum(map(abs, other))) ** 0.5
    return sum(a * b for a, b in zip(one, other, strict=True)) / scale if scale else float("nan")


def _sign(value: float) -> int:
    return (value > 0) - (value < 0)

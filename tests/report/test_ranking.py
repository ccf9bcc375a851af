import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kendalltau

from capmix.evaluation.agreement import agreement
from capmix.probe.evaluate import ProbeResult
from capmix.report.ranking import ranking

numbers = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=2, max_size=12)


@given(numbers)
def test_agreement_is_kendalls_tau_with_ties(pairs: list[tuple[int, int]]) -> None:
    """Compare with scipy's tau-b."""
    first, second = zip(*pairs, strict=True)
    expected = kendalltau(first, second).statistic
    found = agreement(first, second)
    assert math.isclose(found, expected, abs_tol=1e-9) or (math.isnan(found) == np.isnan(expected))


def test_the_best_stands_first() -> None:
    def result(rate: float) -> ProbeResult:
        hits = np.arange(100) < 100 * rate
        return ProbeResult("part", {"set": {"acc1": rate}}, {"set/acc1": hits})

    lines = ranking({"low": [result(0.1), result(0.2)], "high": [result(0.5), result(0.6)]})
    assert lines[1].split()[:4] == ["1", "high", "2", "55.00"]
    assert lines[2].split()[:4] == ["2", "low", "2", "15.00"]

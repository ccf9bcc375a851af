from collections import Counter

import pytest

from capmix.engine.budget import allowed_failures, check_failures, failed_line, is_hopeless
from capmix.errors import UserError
from capmix.storage.marker import Counts


def counts(ok: int, failed: int) -> Counts:
    return Counts(ok=ok, failed=Counter(broken_image=failed))


@pytest.mark.parametrize(
    ("rows", "fraction", "allowed"),
    [
        (1, 0.01, 0.01),
        (2, 0.01, 1),
        (13, 0.01, 6),
        (20, 0.01, 10),
        (1_000, 0.01, 10),
        (1_001, 0.01, 10.01),
        (1_000_000, 0.01, 10_000),
        (13, 0.9, 11.7),
        (13, 0, 0),
        (13, 1, 13),
    ],
)
def test_a_few_rows_may_fail_if_they_are_at_most_half_of_all(
    rows: int, fraction: float, allowed: float
) -> None:
    assert allowed_failures(rows, fraction) == pytest.approx(allowed)


def test_only_the_fraction_counts_if_a_shard_could_not_be_read() -> None:
    assert allowed_failures(100, 0.01, unread=50) == 1
    check_failures("index", counts(99, 1), 0.01, [])
    with pytest.raises(UserError, match="plus about 50 in shards that could not be read"):
        check_failures("index", counts(99, 1), 0.01, [], unread=50)


def test_a_small_pool_finishes_and_one_that_mostly_fails_does_not() -> None:
    for ok, failed in ((12, 1), (7, 6), (990, 10)):
        check_failures("index", counts(ok, failed), 0.01, [])
    for ok, failed in ((0, 1), (6, 7), (0, 13), (989, 11), (98_999, 1_001)):
        with pytest.raises(UserError, match="over the budget of 1.0%"):
            check_failures("index", counts(ok, failed), 0.01, [])


def test_a_run_is_not_stopped_early_while_it_can_stay_within_the_budget() -> None:
    assert not is_hopeless(counts(0, 3), 0.01, rows=13)
    assert is_hopeless(counts(0, 7), 0.01, rows=13)
    assert is_hopeless(counts(0, 11), 0.01, rows=1_000)


def test_what_failed_is_counted_and_some_of_it_named() -> None:
    assert failed_line(counts(12, 1), ["Shard 0, sample 'a.jpg': no"]) == (
        "1 of 13 rows failed (broken_image 1). Shard 0, sample 'a.jpg': no. `capmix failures` "
        "lists them all"
    )
    assert "b. 3 more; `capmix failures`" in failed_line(counts(12, 5), ["a", "b"])

"""Which workers are restarted after they die."""

from capmix.engine.deaths import IN_A_ROW, Deaths


def test_a_worker_that_never_finishes_a_shard_is_given_up() -> None:
    deaths = Deaths()
    assert [deaths.died(0, 2) for _ in range(IN_A_ROW)] == [True] * (IN_A_ROW - 1) + [False]
    assert deaths.left(2) == [1]
    assert [deaths.died(1, 2) for _ in range(IN_A_ROW)][-1] is False
    assert deaths.left(2) == []


def test_the_last_worker_is_kept_if_it_has_finished_a_shard() -> None:
    deaths = Deaths()
    for number in (0, 1):
        deaths.answered(number)
    assert not [deaths.died(0, 2) for _ in range(IN_A_ROW)][-1]
    assert all(deaths.died(1, 2) for _ in range(3 * IN_A_ROW))
    assert deaths.left(2) == [1]


def test_a_finished_shard_resets_the_count_of_deaths() -> None:
    deaths = Deaths()
    for _ in range(3 * IN_A_ROW):
        assert deaths.died(0, 2)
        deaths.answered(0)

"""Successive halving over seeds: how many candidates get another probe.

Each round trains one probe per remaining candidate, with the round's seed, and keeps the better
half for the next (Jamieson and Talwalkar, arXiv 1502.07943; here a round is a seed instead of more
steps, so that all probes are of the same length).
"""

from capmix.errors import UserError


def round_sizes(candidates: int, rounds: int) -> list[int]:
    """Return the number of candidates in each round; at least one."""
    return [-(-candidates // 2**number) for number in range(rounds)]


def most_candidates(budget: int, rounds: int, baselines: int) -> int:
    """Return how many candidates fit in a budget of probes, with `baselines` in every round.

    Raises UserError if there are fewer than two.
    """
    left = budget - baselines * rounds
    least = sum(round_sizes(2, rounds))
    if left < least:
        raise UserError(
            f"--budget {budget}: {baselines} baselines take {baselines * rounds} probes, and two "
            f"candidates {least}; pass at least {baselines * rounds + least}, or fewer --seeds"
        )
    count = 2
    while sum(round_sizes(count + 1, rounds)) <= left:
        count += 1
    return count

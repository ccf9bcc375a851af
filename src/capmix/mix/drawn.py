"""Draw the rows of a recipe with `sample` over the whole pool (see soft_cap.py).

Random numbers are assigned to rows in the order of uid (its md5), source and k, so that neither
shards and their order nor the engine change which rows are drawn.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from capmix.engine.progress import progress
from capmix.errors import UserError
from capmix.mix.expression import Threshold
from capmix.mix.run import Kept, MixRun, MixTally, kept_rows
from capmix.mix.sampling import CapRules, Sampling, batches_of
from capmix.mix.soft_cap import CapSampler, draw_batches

MAX_ROWS = 400_000_000  # about 45 bytes each
BITS_OF_K = 20


@dataclass(frozen=True)
class DrawnRows:
    """How often each row is drawn.

    `times`, int32 (rows,), in the order of kept_rows; -1 for a row without a logit. `candidates`
    counts the others. `asked` rows were to be drawn `batch` at a time.
    """

    times: np.ndarray
    candidates: int
    asked: int
    batch: int
    batches: int

    def counts(self) -> dict[str, int]:
        """Return the counts for the summary; `drawn` counts each repeat."""
        drawn = int(self.times[self.times > 0].sum(dtype=np.int64))
        return {
            "asked": self.asked,
            "drawn": drawn,
            "candidates": self.candidates,
            "batch": self.batch,
            "batches": self.batches,
        }


def find_drawn(
    run: MixRun, values: Mapping[Threshold, float], repeated: np.ndarray | None
) -> DrawnRows:
    """Draw the rows of the recipe. `values` and `repeated` are those of kept_rows.

    Raises UserError if no row has a logit, and for more than MAX_ROWS rows or too many batches.
    """
    sampling = run.plan.recipe.sample
    assert sampling is not None
    sources = sorted({run.plan.source_of(step) for step in run.plan.steps})
    ranks = np.array([sources.index(run.plan.source_of(step)) for step in run.plan.steps])
    tally = MixTally(len(run.plan.steps))
    logits, uids, texts = (
        [np.empty(0, np.float32)],
        [np.empty(0, np.uint64)],
        [np.empty(0, np.int32)],
    )
    for kept in kept_rows(run, values, tally, repeated, with_logits=True):
        logits.append(_logits(kept))
        uids.append(_uids(kept))
        texts.append((ranks[kept.clause] << BITS_OF_K | kept.k).astype(np.int32))
        if tally.rows > MAX_ROWS:
            raise UserError(
                f"{run.plan.place}: sample: more than {MAX_ROWS:,} rows; narrow the clauses"
            )
    logit = np.concatenate(logits)
    candidates = np.flatnonzero(np.isfinite(logit))
    rules, expected = _rules(run, sampling, tally.samples, len(candidates))
    if len(logit) and not len(candidates):
        raise UserError(
            f"{run.plan.place}: sample: none of {len(logit):,} rows has a logit "
            f"({sampling.logit!r} is null or infinite)"
        )
    keys = (np.concatenate(texts)[candidates], np.concatenate(uids)[candidates])
    del uids, texts, logits
    order = candidates[np.lexsort(keys)]
    del keys, candidates
    sampler = CapSampler(logit[order], rules.penalty, rules.cap)
    batches = 0
    with progress("sample", "batch", expected) as bar:
        for _ in draw_batches(sampler, rules, run.plan.seed):
            bar.update(1)
            batches += 1
    times = np.full(len(logit), -1, np.int32)
    times[order] = sampler.times
    return DrawnRows(times, len(order), rules.draws, rules.batch, batches)


def _rules(run: MixRun, sampling: Sampling, samples: int, items: int) -> tuple[CapRules, int]:
    """Return the rules for a pool of `samples`, and the number of batches."""
    try:
        rules = sampling.rules(max(samples, 1))
        return rules, batches_of(rules, items)
    except ValueError as error:
        raise UserError(f"{run.plan.place}: sample: {error}") from error


def _logits(kept: Kept) -> np.ndarray:
    assert kept.logit is not None
    return kept.logit


def _uids(kept: Kept) -> np.ndarray:
    assert kept.digest is not None
    found: np.ndarray = kept.digest["f0"].copy()  # the lower half would only break ties
    return found

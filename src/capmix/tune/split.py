"""Rows to choose on and rows to report on: no image is in both."""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

from capmix.errors import UserError
from capmix.evaluation.evalset import EvalSet
from capmix.probe.evalset import FeatureSet
from capmix.settings.counted import counted

log = logging.getLogger(__name__)
DEV, HELD_OUT = "dev", "held_out"


@dataclass(frozen=True)
class Sides:
    """Evaluation sets to choose on (`dev`), and others to report on (`held_out`)."""

    dev: list[FeatureSet]
    held_out: list[FeatureSet]

    def of(self, side: str) -> list[FeatureSet]:
        """Return the sets of a side."""
        return self.dev if side == DEV else self.held_out

    def count(self, side: str) -> int:
        """Return the number of images of a side."""
        return sum(len(one.items) for one in self.of(side))


def halves(sets: Sequence[FeatureSet], seed: int) -> Sides:
    """Split each set in two by a hash of seed and image bytes, so equal images stay together.

    Raises UserError if a half has no image.
    """

    def is_dev(image: bytes) -> bool:
        found = hashlib.blake2b(image, digest_size=8, key=f"{seed}".encode()).digest()
        return found[0] % 2 == 0

    dev, held_out = [], []
    for one in sets:
        of_dev = [is_dev(item.image) for item in one.evalset.items()]
        dev.append(_some(one, of_dev, f"{DEV}.{seed}"))
        held_out.append(_some(one, [not yes for yes in of_dev], f"{HELD_OUT}.{seed}"))
    return Sides(dev, held_out)


def apart(dev: Sequence[FeatureSet], held_out: Sequence[FeatureSet]) -> Sides:
    """Return different sets as the two sides, without held-out images that are also in `dev`.

    Raises UserError if no held-out image is left.
    """
    seen = {_digest(item.image) for one in dev for item in one.evalset.items()}
    digest = hashlib.sha256(" ".join(one.evalset.digest for one in dev).encode()).hexdigest()[:8]
    kept = [
        _some(
            one,
            [_digest(item.image) not in seen for item in one.evalset.items()],
            f"{HELD_OUT}.{digest}",
        )
        for one in held_out
    ]
    left_out = sum(len(a.items) - len(b.items) for a, b in zip(held_out, kept, strict=True))
    if left_out:
        log.warning(
            "tune: %s of --held-out also in --evalsets: left out", counted(left_out, "image")
        )
    return Sides(list(dev), kept)


def _some(features: FeatureSet, keeps: Sequence[bool], side: str) -> FeatureSet:
    evalset = features.evalset
    rows = [row for row, keep in enumerate(keeps) if keep]
    if not rows:
        raise UserError(
            f"evaluation set {evalset.name}: no image for the side {side.partition('.')[0]}; pass "
            "a larger set, or other sets with --held-out"
        )
    named = _of_side(evalset, side)
    return FeatureSet(named, [features.items[row] for row in rows], features.features[rows])


def _of_side(evalset: EvalSet, side: str) -> EvalSet:
    return replace(evalset, digest=f"{evalset.digest}.{side}")


def _digest(image: bytes) -> bytes:
    return hashlib.blake2b(image, digest_size=16).digest()

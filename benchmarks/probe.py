"""Time probes on random embeddings: python benchmarks/probe.py --rows 1000000 --dimensions 512.

Prints CPU time of one thread (set OMP_NUM_THREADS=1), which other programs on the machine change
little. Vectors and texts are random; the time does not depend on their values. Reading the parts of
a pool is not included.
"""

import argparse
import resource
import time

import numpy as np

from capmix.probe.fit import FitSettings, TrainingSet, _fit
from capmix.probe.images import FrozenImages
from capmix.probe.texts import TextSide, WordTexts
from capmix.probe.towers import Towers
from capmix.probe.transformer import TransformerTexts
from capmix.storage.marker import Counts

WORDS = ["a", "red", "green", "small", "car", "dog", "house", "tree", "on", "the", "street"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--dimensions", type=int, default=512)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--steps", type=int, default=100)
    given = parser.parse_args()
    random = np.random.default_rng(0)
    images = np.empty((given.rows, given.dimensions), np.float16)
    for part in np.array_split(images, -(-given.rows // 10_000)):  # float32 takes twice the memory
        part[:] = random.standard_normal(part.shape, np.float32)
    texts = [" ".join(some) for some in random.choice(WORDS, (given.rows, 9))]
    sides: tuple[TextSide, ...] = (WordTexts(), TransformerTexts())
    for side in sides:
        start = time.process_time()
        prepared = side.prepare(texts)
        ready = time.process_time()
        data = TrainingSet(images, prepared, Counts(ok=given.rows))
        towers = Towers(FrozenImages("random"), side)
        _fit(data, 0, FitSettings(1, given.batch), towers)  # imports parts of torch
        begin = time.process_time()
        _fit(data, 0, FitSettings(given.steps, given.batch), towers)
        step = (time.process_time() - begin) / given.steps
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        print(
            f"{side.name}: texts {ready - start:.1f} s, {1000 * step:.1f} ms per step of "
            f"{given.batch}, {given.rows / given.batch * step:.0f} s per pass over "
            f"{given.rows:,} rows, peak {peak:.1f} GB"
        )


if __name__ == "__main__":
    main()

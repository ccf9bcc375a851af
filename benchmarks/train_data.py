"""CPU time per sample of the training data path: open_clip's loader, capmix on shards and on a
pool.

    python benchmarks/train_data.py

One thread reads, decodes, crops, tokenizes and batches 640 x 480 JPEGs, without training. CPU time
does not depend on the load of the host; benchmarks/train.py measures wall time.
"""

import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import open_clip
import torch
from caption import write_pool
from open_clip.transform import image_transform
from open_clip_train.data import get_wds_dataset

from capmix.training.pairs import ExportedShards, PairSource, PoolSubset
from capmix.training.preparation import prepare_with
from capmix.training.stream import SampleTally, TrainingBatches, plan_epoch
from capmix.workspace import open_workspace

IMAGES, BATCH, TURNS, BATCHES = 600, 50, 8, 3
ENOUGH = 100_000


def main() -> None:
    torch.set_num_threads(1)
    crop, tokenizer = image_transform(224, True), open_clip.get_tokenizer("ViT-B-32")

    def ours(source: PairSource) -> Iterator[Any]:
        plan = plan_epoch(ENOUGH, BATCH, 1, 0, 1, exact=False)
        return iter(
            TrainingBatches(source, plan, lambda: 0, prepare_with(crop, tokenizer), SampleTally())
        )

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_pool(folder / "pool", IMAGES)
        work = open_workspace(str(folder / "pool"), str(folder / "work"))
        work.mix("raw")
        work.export("raw", str(folder / "shards"), samples_per_shard=IMAGES // 2)
        shards = ExportedShards([str(folder / "shards")])
        settings = SimpleNamespace(
            train_data=shards.open_clip_urls(), train_num_samples=ENOUGH, dataset_resampled=True,
            train_data_upsampling_factors=None, seed=0, batch_size=BATCH, world_size=1, workers=0,
        )  # fmt: skip
        theirs = get_wds_dataset(settings, crop, True, tokenizer=tokenizer)
        ways = {
            "open_clip": iter(theirs.dataloader),
            "capmix, shards": ours(shards),
            "capmix, pool": ours(PoolSubset(work.pool, work.store, "raw")),
        }
        spent: dict[str, list[float]] = {name: [] for name in ways}
        for stream in ways.values():
            next(stream)  # fill the shuffle buffer before timing
        for _ in range(TURNS):
            for name, stream in ways.items():
                started = time.process_time()
                for _ in range(BATCHES):
                    next(stream)
                spent[name].append((time.process_time() - started) / (BATCHES * BATCH))
    base = statistics.median(spent["open_clip"])
    for name, found in spent.items():
        seconds = statistics.median(found)
        print(f"{name:<16} {1000 * seconds:6.2f} ms of CPU per sample  {base / seconds:5.3f} x")


if __name__ == "__main__":
    main()

"""Samples per second of training: open_clip's trainer, capmix on shards, capmix on a pool.

    python benchmarks/train.py [--samples N] [--model M] [--batch-size B] [--accumulate A] ...

All ways train the same model on the same 640 x 480 images: open_clip's own trainer and capmix on
exported shards, and capmix directly on the pool, with a subset of all rows and with a subset of
every third row, which skips most of the pool. By default the model is small, so that most of the
time is spent on reading, decoding and cropping, where the ways differ. On a GPU, use --model
ViT-B-32 --batch-size 4096 --accumulate 4 --workers 12. "waits" is the share of the whole epoch,
including its start, that is spent waiting for data.
"""

import argparse
import json
import multiprocessing
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from caption import write_pool

from capmix.training.hooks import Waited
from capmix.training.model import config_file, know_model, read_config
from capmix.training.pairs import ExportedShards, PairSource, PoolSubset
from capmix.training.scales import TrainSettings, open_clip_arguments
from capmix.training.stream import EpochPlan
from capmix.training.train import train
from capmix.workspace import open_workspace

SMALL = {
    "embed_dim": 32,
    "vision_cfg": {
        "image_size": 224, "patch_size": 56, "width": 32, "layers": 1, "head_width": 16,
    },
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}  # fmt: skip
ROUNDS = 3
ALONE, SHARDS = "open_clip alone", "capmix, shards"
POOLS = {"capmix, pool, all": "raw", "capmix, pool, a third": "control-raw-random33"}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=600)
    parser.add_argument("--samples", type=int, default=4096)
    parser.add_argument("--model")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--accumulate", type=int, default=1)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        model = options.model or str(folder / "vit-small.json")
        (folder / "vit-small.json").write_text(json.dumps(SMALL))
        settings = TrainSettings(
            scale="debug", model=model, samples=options.samples, checkpoints=1,
            batch_size=options.batch_size, accumulate=options.accumulate, warmup=1,
            workers=options.workers, log_every=1,
            precision="amp_bf16" if torch.cuda.is_available() else None,
        )  # fmt: skip
        write_pool(folder / "pool", options.images)
        work = open_workspace(str(folder / "pool"), str(folder / "work"))
        work.mix("raw")
        work.mix("control-random", fraction=0.33)
        work.export("raw", str(folder / "shards"), samples_per_shard=options.images // 2)
        _print_reading(ExportedShards([str(folder / "shards")]), SHARDS)
        for name, subset in POOLS.items():
            _print_reading(PoolSubset(work.pool, work.store, subset), name)
        rates: dict[str, list[float]] = {ALONE: [], SHARDS: []} | {name: [] for name in POOLS}
        waits: dict[str, list[float]] = {name: [] for name in rates}
        for number in range(ROUNDS):
            for name in rates:
                rate, wait = _in_its_own_process(name, folder, settings, number)
                rates[name].append(rate)
                waits[name].append(wait)
        base = statistics.median(rates[ALONE])
        for name, found in rates.items():
            rate = statistics.median(found)
            wait = statistics.median(waits[name])
            print(f"{name:<26} {rate:8.1f} samples/s  {rate / base:5.3f} x  waits {wait:.1%}")


def _print_reading(source: PairSource, name: str) -> None:
    """Print the microseconds per sample of reading without decoding, the median of 15 passes."""
    found = []
    for _ in range(15):
        started = time.perf_counter()
        count = sum(1 for shard in source.shards for _ in source.read(shard))
        found.append((time.perf_counter() - started) / count)
    print(f"{name:<26} {1e6 * statistics.median(found):8.1f} us per sample to read", flush=True)


def _in_its_own_process(
    name: str, folder: Path, settings: TrainSettings, number: int
) -> tuple[float, float]:
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_run, args=(there, name, folder, settings, number))
    process.start()
    there.close()  # otherwise the death of the process would go unnoticed
    found: tuple[float, float] = here.recv()
    process.join()
    return found


def _run(pipe: Any, name: str, folder: Path, settings: TrainSettings, number: int) -> None:
    multiprocessing.set_start_method("fork", force=True)
    run = folder / f"{name.replace(' ', '-').replace(',', '')}-{number}"
    shards = ExportedShards([str(folder / "shards")])
    import open_clip_train.main as trainer

    theirs = trainer.train_one_epoch
    found: list[tuple[float, float]] = []

    def timed(model: Any, data: dict[str, Any], *others: Any, tb_writer: Any = None) -> None:
        loader = data["train"].dataloader
        waited = loader if isinstance(loader, Waited) else _counting(loader)
        data["train"].dataloader = waited
        started = time.perf_counter()
        theirs(model, data, *others, tb_writer=tb_writer)
        seconds = time.perf_counter() - started
        found.append((loader.num_samples / seconds, waited.seconds / seconds))

    trainer.train_one_epoch = timed
    if name == ALONE:
        config = config_file(settings)
        if config is not None:
            settings = settings.model_copy(update={"model": config.stem})
            know_model(config.stem, read_config(config))
        on_cpu = not torch.cuda.is_available()
        urls = shards.open_clip_urls()
        trainer.main(open_clip_arguments(settings, urls, str(folder), run.name, 1, on_cpu))
    elif name == SHARDS:
        train(settings, shards, str(run))
    else:
        work = open_workspace(str(folder / "pool"), str(folder / "work"))
        train(settings, PoolSubset(work.pool, work.store, POOLS[name]), str(run))
    pipe.send(found[0])


def _counting(loader: Any) -> Waited:
    """Wrap open_clip's loader with the same timer."""
    plan = EpochPlan([loader.num_samples // loader.num_batches] * loader.num_batches, 1)
    return Waited(loader, plan, 1)


if __name__ == "__main__":
    sys.exit(main())

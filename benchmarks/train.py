"""Samples per second of training: open_clip's trainer alone, capmix on shards, capmix on a pool.

    python benchmarks/train.py [--samples N] [--model M] [--batch-size B] [--accumulate A] ...

All three train the same model on the same images of web size (512 pixels): open_clip's own trainer
and capmix on exported shards, capmix also on the pool that they were exported from. Without a GPU
the model is a small one, so that the time goes into reading, decoding and cropping, which is what
the ways differ in. On a GPU: --model ViT-B-32 --batch-size 4096 --accumulate 4 --workers 12. The
share of time that the device waited for data is the median over steps.
"""

import argparse
import json
import multiprocessing
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from caption import write_pool

from capmix import jobs
from capmix.train.pairs import ExportedShards, PoolSubset
from capmix.train.scales import TrainSettings, open_clip_arguments
from capmix.train.train import register_model, train

SMALL = {
    "embed_dim": 32,
    "vision_cfg": {
        "image_size": 224, "patch_size": 56, "width": 32, "layers": 1, "head_width": 16,
    },
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}  # fmt: skip
ROUNDS = 3
ALONE, SHARDS, POOL = "open_clip alone", "capmix, shards", "capmix, pool and subset"


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
        work = jobs.open_work(str(folder / "pool"), str(folder / "work"))
        jobs.mix(work, "raw")
        jobs.export(work, "raw", str(folder / "shards"), samples_per_shard=options.images // 2)
        rates: dict[str, list[float]] = {ALONE: [], SHARDS: [], POOL: []}
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


def _in_its_own_process(
    name: str, folder: Path, settings: TrainSettings, number: int
) -> tuple[float, float]:
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_run, args=(there, name, folder, settings, number))
    process.start()
    found: tuple[float, float] = here.recv()
    process.join()
    return found


def _run(pipe: object, name: str, folder: Path, settings: TrainSettings, number: int) -> None:
    multiprocessing.set_start_method("fork", force=True)
    run = folder / f"{name.replace(' ', '-').replace(',', '')}-{number}"
    shards = ExportedShards([str(folder / "shards")])
    import open_clip_train.main as trainer

    started, theirs = [0.0], trainer.train_one_epoch
    waits: list[float] = []

    class Waits:
        """Takes the numbers of each step as a TensorBoard writer does."""

        def __init__(self, inner: object):
            self.inner, self.data = inner, 0.0

        def add_scalar(self, what: str, value: float, step: int) -> None:
            if what == "train/data_time":
                self.data = value
            if what == "train/batch_time" and step > 0:  # the first step starts the workers
                waits.append(self.data / value)
            if self.inner is not None:
                self.inner.add_scalar(what, value, step)  # type: ignore[attr-defined]

    def timed(*arguments: object, tb_writer: object = None) -> None:
        started[0] = time.perf_counter()
        theirs(*arguments, tb_writer=Waits(tb_writer))
        started[0] = time.perf_counter() - started[0]

    trainer.train_one_epoch = timed
    if name == ALONE:
        if settings.model and settings.model.endswith(".json"):
            register_model(Path(settings.model))
            settings = settings.model_copy(update={"model": Path(settings.model).stem})
        on_cpu = not torch.cuda.is_available()
        urls = shards.open_clip_urls()
        trainer.main(open_clip_arguments(settings, urls, str(folder), run.name, 1, on_cpu))
    elif name == SHARDS:
        train(settings, shards, str(run))
    else:
        work = jobs.open_work(str(folder / "pool"), str(folder / "work"))
        train(settings, PoolSubset(work.pool, work.store, "raw"), str(run))
    seen = settings.in_full.samples
    pipe.send((seen / started[0], statistics.median(waits)))  # type: ignore[attr-defined]


if __name__ == "__main__":
    sys.exit(main())

"""What stands in for three names of open_clip's trainer while it runs; see train.py."""

import contextlib
import copy
import logging
import time
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader

from capmix.train.pairs import PairSource
from capmix.train.progress import OptimizerSteps, Progress
from capmix.train.run import RunFolder
from capmix.train.scales import TrainSettings
from capmix.train.stream import CONTEXT, EpochPlan, SampleTally, TrainingBatches, plan_epoch


@contextlib.contextmanager
def hooked(
    main: Any, settings: TrainSettings, source: PairSource, run: RunFolder
) -> Iterator[None]:
    """Put our data and progress into `main`, the module open_clip_train.main, and take them out."""
    tally = SampleTally(str(run.failures))
    names = {
        "get_data": _get_data(main.get_data, settings, source, tally),
        "train_one_epoch": _train_one_epoch(main.train_one_epoch, run, tally),
        "setup_logging": _log_to_file,
    }
    theirs = {name: getattr(main, name) for name in names}
    try:
        for name, ours in names.items():
            setattr(main, name, ours)
        yield
    finally:
        for name, original in theirs.items():
            setattr(main, name, original)


class Waited:
    """A data loader that adds up the seconds that were waited for its batches."""

    def __init__(self, loader: Iterable[Any], plan: EpochPlan, world_size: int):
        self.loader, self.plan, self.seconds = loader, plan, 0.0
        # What open_clip asks of a loader.
        self.num_batches = len(plan.sizes)
        self.num_samples = sum(plan.sizes) * world_size

    def __iter__(self) -> Iterator[Any]:
        batches = iter(self.loader)
        while True:
            started = time.perf_counter()
            try:
                batch = next(batches)
            except StopIteration:
                return
            self.seconds += time.perf_counter() - started
            yield batch


def _get_data(theirs: Any, settings: TrainSettings, source: PairSource, tally: SampleTally) -> Any:
    from open_clip_train.data import DataInfo, SharedEpoch

    def get_data(
        args: Any, preprocess_fns: Any, epoch: int = 0, tokenizer: Any = None
    ) -> dict[str, Any]:
        others = copy.copy(args)
        others.train_data = None
        data: dict[str, Any] = theirs(others, preprocess_fns, epoch=epoch, tokenizer=tokenizer)
        plan = plan_epoch(
            args.train_num_samples,
            args.batch_size,
            args.world_size,
            args.workers,
            args.accum_freq,
            settings.exact,
        )
        shared = SharedEpoch(epoch=epoch)
        batches = TrainingBatches(
            source,
            plan,
            shared.get_value,
            preprocess_fns[0],
            lambda text: tokenizer(text)[0],
            tally,
            settings.seed,
            args.rank,
            args.world_size,
            settings.draws_shards,
            settings.texts,
        )
        loader: DataLoader[Any] = DataLoader(
            batches,
            batch_size=None,
            num_workers=args.workers,
            persistent_workers=args.workers > 0,
            multiprocessing_context=CONTEXT if args.workers else None,
        )
        data["train"] = DataInfo(Waited(loader, plan, args.world_size), shared_epoch=shared)
        return data

    return get_data


def _train_one_epoch(theirs: Any, run: RunFolder, tally: SampleTally) -> Any:
    progress: list[Progress] = []

    def train_one_epoch(
        model: Any,
        data: dict[str, Any],
        loss: Any,
        epoch: int,
        optimizer: Any,
        scaler: Any,
        scheduler: Any,
        dist_model: Any,
        args: Any,
        tb_writer: Any = None,
    ) -> None:
        # So that what the model draws (patch dropout) is the same after a resume.
        torch.manual_seed(((args.seed << 20) + epoch << 16) + args.rank)
        before = tally.ok, tally.failed
        if args.rank == 0 and not progress:
            loader = data["train"].dataloader
            steps = OptimizerSteps(loader.plan.sizes, args.accum_freq, args.world_size, args.epochs)
            progress.append(Progress(run.metrics, steps, loader, tally, tb_writer))
            progress[0].resume_at(epoch)
        writer = progress[0] if progress else None
        theirs(
            model, data, loss, epoch, optimizer, scaler, scheduler, dist_model, args,
            tb_writer=writer,
        )  # fmt: skip
        ok, failed = _of_all_devices(tally.ok - before[0], tally.failed - before[1], args)
        if args.rank == 0:
            run.note_counts(epoch, ok, failed)

    return train_one_epoch


def _of_all_devices(ok: int, failed: int, args: Any) -> tuple[int, int]:
    if not args.distributed:
        return ok, failed
    counts = torch.tensor([ok, failed], device=args.device)
    torch.distributed.all_reduce(counts)
    return int(counts[0]), int(counts[1])


def _log_to_file(log_file: str | None, level: int) -> None:
    """open_clip's log goes to the run's out.log alone; what people need to see is Progress's."""
    handler = logging.FileHandler(log_file) if log_file else logging.NullHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s | %(levelname)s | %(message)s"))
    logging.root.handlers[:] = [handler]
    logging.root.setLevel(level)

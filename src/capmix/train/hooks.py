"""What stands in for three names of open_clip's trainer while it runs; see train.py."""

import contextlib
import copy
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

from capmix.train.pairs import PairSource
from capmix.train.progress import Progress
from capmix.train.scales import TrainSettings
from capmix.train.stream import Tally, TrainingBatches, plan_epoch


@contextlib.contextmanager
def hooked(main: Any, settings: TrainSettings, source: PairSource, run: Path) -> Iterator[Tally]:
    """Put our data and progress into `main`, the module open_clip_train.main, and take them out."""
    tally = Tally(str(run / "failures.jsonl"))
    names = {
        "get_data": _get_data(main.get_data, settings, source, tally),
        "train_one_epoch": _train_one_epoch(main.train_one_epoch, run, tally),
        "setup_logging": _log_to_file,
    }
    theirs = {name: getattr(main, name) for name in names}
    try:
        for name, ours in names.items():
            setattr(main, name, ours)
        yield tally
    finally:
        for name, original in theirs.items():
            setattr(main, name, original)


def _get_data(theirs: Any, settings: TrainSettings, source: PairSource, tally: Tally) -> Any:
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
        loader: Any = DataLoader(
            batches,
            batch_size=None,
            num_workers=args.workers,
            persistent_workers=args.workers > 0,
        )
        loader.num_batches = len(plan.sizes)
        loader.num_samples = sum(plan.sizes) * args.world_size
        data["train"] = DataInfo(loader, shared_epoch=shared)
        return data

    return get_data


def _train_one_epoch(theirs: Any, run: Path, tally: Tally) -> Any:
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
        if args.rank == 0 and not progress:
            steps = data["train"].dataloader.num_batches // args.accum_freq
            at_once = args.batch_size * args.world_size * args.accum_freq
            whole = steps * args.epochs
            progress.append(
                Progress(run / "metrics.jsonl", whole, steps, at_once, tally, tb_writer)
            )
            progress[0].resume_at(epoch)
        writer = progress[0] if progress else None
        theirs(
            model, data, loss, epoch, optimizer, scaler, scheduler, dist_model, args,
            tb_writer=writer,
        )  # fmt: skip

    return train_one_epoch


def _log_to_file(log_file: str | None, level: int) -> None:
    """open_clip's log goes to the run's out.log alone; what people need to see is Progress's."""
    handler = logging.FileHandler(log_file) if log_file else logging.NullHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s | %(levelname)s | %(message)s"))
    logging.root.handlers[:] = [handler]
    logging.root.setLevel(level)

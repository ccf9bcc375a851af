"""Replacements for four functions of open_clip's trainer; see train.py.

Two versions of the trainer are supported, distinguished by the signature of train_one_epoch: the
release (3.3.0: model, data, loss, epoch, ...; batches are pairs) and the main branch (4.2.0.dev0:
state, data, args; batches are dictionaries). The functions are replaced once per process.
"""

import copy
import inspect
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader

from capmix.errors import UserError
from capmix.training.coca import initialise_decoder
from capmix.training.cpu import suit_to_cpu
from capmix.training.pairs import PairSource
from capmix.training.passes import Layout, PassBatches, PassChunks, Position, chunk_stream
from capmix.training.preparation import prepare_with
from capmix.training.progress import OptimizerSteps, Progress
from capmix.training.run import RunFolder
from capmix.training.scales import TrainSettings
from capmix.training.stream import (
    CONTEXT,
    EpochPlan,
    Place,
    SampleTally,
    Stopped,
    TrainingBatches,
    plan_epoch,
)
from capmix.training.threads import use_threads


@dataclass(frozen=True)
class Trainer:
    """A version of open_clip's trainer.

    `epoch_of` extracts the epoch and the parsed arguments from the arguments of train_one_epoch.
    `batch_of` builds its batch from images and tokens. `names` maps its metric names to ours.
    """

    epoch_of: Callable[[tuple[Any, ...]], tuple[int, Any]]
    batch_of: Callable[[tuple[Any, Any]], Any]
    names: dict[str, str]


RELEASE = Trainer(
    epoch_of=lambda given: (given[3], given[8]),
    batch_of=lambda pair: pair,
    names={},
)
MAIN = Trainer(
    epoch_of=lambda given: (given[0].epoch, given[2]),
    batch_of=lambda pair: {"image": pair[0], "text": pair[1]},
    names={"train/logit_scale": "train/scale"},
)


def trainer_of(train_one_epoch: Callable[..., Any]) -> Trainer:
    """Detect the version of a trainer. Raises UserError if its signature is unknown."""
    names = list(inspect.signature(train_one_epoch).parameters)
    if names[:4] == ["model", "data", "loss", "epoch"]:
        return RELEASE
    if names[1:3] == ["data", "args"]:
        return MAIN
    raise UserError(
        f"train: unsupported open_clip version with train_one_epoch({', '.join(names)}); "
        "pip install open_clip_torch==3.3.0"
    )


def install(main: Any, settings: TrainSettings, source: PairSource, run: RunFolder) -> None:
    """Patch four functions of `main`, open_clip_train.main."""
    from open_clip import create_model_and_transforms
    from open_clip_train.data import get_data
    from open_clip_train.train import train_one_epoch

    trainer = trainer_of(train_one_epoch)
    tally = SampleTally(str(run.failures))
    main.get_data = _get_data(get_data, settings, source, tally, trainer, run)
    main.train_one_epoch = _train_one_epoch(train_one_epoch, run, tally, trainer)
    main.setup_logging = _log_to_file
    main.create_model_and_transforms = _create_model(
        create_model_and_transforms, settings, run.title
    )


class Waited:
    """A data loader that measures the seconds spent waiting for its batches.

    Iterating raises UserError if a data worker stopped for a reason that the user can fix.
    """

    def __init__(
        self, loader: Iterable[Any], plan: EpochPlan, world_size: int, trainer: Trainer = RELEASE
    ):
        self.loader, self.plan, self.seconds = loader, plan, 0.0
        self._batch_of = trainer.batch_of
        # Required by open_clip.
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
            if isinstance(batch, Stopped):
                raise UserError(batch.reason)
            yield self._batch_of(batch)


def _create_model(theirs: Any, settings: TrainSettings, title: str) -> Any:
    def create_model_and_transforms(name: str, pretrained: str | None = None, **more: Any) -> Any:
        try:
            made = theirs(name, pretrained, **more)
        except Exception as error:
            if not pretrained:
                raise
            why = " ".join(str(error).split())[:300] or type(error).__name__
            raise UserError(
                f"--pretrained {pretrained}: these weights do not load into the model {name}: {why}"
            ) from error
        if not pretrained:
            initialise_decoder(made[0])
        is_on_cpu = str(more.get("device")) == "cpu"
        if is_on_cpu:
            suit_to_cpu(made[0], str(more.get("precision")))
        if is_on_cpu or settings.threads:
            use_threads(made[0], settings.device_batch(1), settings.threads, title)
        return made

    return create_model_and_transforms


def _get_data(
    theirs: Any,
    settings: TrainSettings,
    source: PairSource,
    tally: SampleTally,
    trainer: Trainer,
    run: RunFolder,
) -> Any:
    from open_clip_train.data import DataInfo, SharedEpoch

    def get_data(
        args: Any, preprocess_fns: Any, epoch: int = 0, tokenizer: Any = None, **more: Any
    ) -> dict[str, Any]:
        others = copy.copy(args)
        others.train_data = None
        data: dict[str, Any] = theirs(
            others, preprocess_fns, epoch=epoch, tokenizer=tokenizer, **more
        )
        plan = plan_epoch(
            args.train_num_samples,
            args.batch_size,
            args.world_size,
            args.workers,
            args.accum_freq,
            settings.exact,
        )
        shared = SharedEpoch(epoch=epoch)

        # The trainer copies with non_blocking, which needs page-locked memory to have an effect.
        pin = str(args.device).startswith("cuda")

        preparation = prepare_with(preprocess_fns[0], tokenizer)
        if settings.draws_shards:
            batches = TrainingBatches(
                source,
                plan,
                shared.get_value,
                preparation,
                tally,
                settings.seed,
                args.rank,
                args.world_size,
                settings.texts,
            )
            loader: Any = DataLoader(
                batches,
                batch_size=None,
                num_workers=args.workers,
                persistent_workers=args.workers > 0,
                multiprocessing_context=CONTEXT if args.workers else None,
                pin_memory=pin,
            )
        else:
            start = _start(run, args.rank, epoch, Layout(args.world_size, plan.workers, plan.chunk))
            workers = [
                PassChunks(
                    source,
                    Place(args.rank, args.world_size, worker, plan.workers),
                    start,
                    preparation,
                    tally.failures,
                    settings.seed,
                    settings.texts,
                )
                for worker in range(plan.workers)
            ]
            streams = [chunk_stream(chunks, args.workers == 0, pin) for chunks in workers]
            loader = PassBatches(streams, plan, tally, start)
        waited = Waited(loader, plan, args.world_size, trainer)
        data["train"] = DataInfo(waited, shared_epoch=shared)
        return data

    return get_data


def _start(run: RunFolder, rank: int, epoch: int, layout: Layout) -> Position:
    """Return where the previous epoch ended, or a new pass if the layout of workers changed."""
    record = run.position(rank, epoch - 1)
    position = None if record is None else Position.read(record)
    if position is None or position.layout != layout:
        return Position.start(layout, epoch)
    return position


def _train_one_epoch(theirs: Any, run: RunFolder, tally: SampleTally, trainer: Trainer) -> Any:
    progress: list[Progress] = []

    def train_one_epoch(*given: Any, tb_writer: Any = None) -> None:
        epoch, args = trainer.epoch_of(given)
        data = given[1]
        # Makes random draws of the model (patch dropout) the same after a resume.
        torch.manual_seed(((args.seed << 20) + epoch << 16) + args.rank)
        before = tally.ok, tally.failed
        if args.rank == 0 and not progress:
            loader = data["train"].dataloader
            steps = OptimizerSteps(loader.plan.sizes, args.accum_freq, args.world_size, args.epochs)
            names = trainer.names
            made = Progress(run.metrics, steps, loader, tally, tb_writer, names, run.title)
            progress.append(made)
            made.resume_at(epoch)
        theirs(*given, tb_writer=progress[0] if progress else None)
        batches = data["train"].dataloader.loader
        if isinstance(batches, PassBatches):
            run.note_position(args.rank, epoch, batches.position.record)
            if epoch + 1 == args.epochs:
                batches.close()
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
    """Write open_clip's log only to the run's out.log. Progress prints what users need."""
    handler = logging.FileHandler(log_file) if log_file else logging.NullHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s | %(levelname)s | %(message)s"))
    logging.root.handlers[:] = [handler]
    logging.root.setLevel(level)

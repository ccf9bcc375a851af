"""Train CLIP with open_clip's own trainer, on exported shards or straight from the pool.

open_clip_train.main.main runs as it is, with the arguments that DataComp's train.py gives it. Three
of its names are ours (hooks.py): get_data (batches out of stream.py), train_one_epoch (the same,
with a writer for the numbers) and setup_logging (to the file alone). They stay in place until the
process ends: `capmix train` is a process of its own, and Python and grids start one (launch.py).
The run's directory is described in run.py.
"""

import contextlib
import errno
import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from capmix.engine.settings import MAX_FAILURES
from capmix.errors import UserError
from capmix.models.registry import require
from capmix.training.model import config_file, know_model, read_config
from capmix.training.pairs import ExportedShards, PairSource
from capmix.training.run import RunFolder
from capmix.training.scales import TrainSettings, open_clip_arguments
from capmix.training.texts import check_texts

DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
# Settings of the machine and not of the run: it goes on with others.
FREE = {"device", "workers", "log_every", "report_to", "accumulate"}
# Arguments of open_clip that make another model than the checkpoint's name says.
OTHER_MODEL = ("--force-quick-gelu", "--force-image-size", "--force-context-length",
               "--force-custom-text", "--image-")  # fmt: skip
REPORTS = ("tensorboard", "wandb")


def train(
    settings: TrainSettings,
    source: PairSource,
    directory: str,
    max_failures: float = MAX_FAILURES,
) -> str:
    """Train, or go on after the last checkpoint; returns the checkpoint's path.

    Under torchrun or srun every process calls this. Raises UserError where `directory` holds
    something else or another run, where settings, data and open_clip do not fit each other, and
    where more than `max_failures` of samples failed.
    """
    run = RunFolder(Path(directory).resolve())
    rank, world_size = place()
    check_settings(settings)
    about = about_run(settings, source)
    run.refuse_others(about)
    if not run.finished:
        _check_source(settings, source, world_size)
        check_machine(settings, world_size)
        settings = _with_model_name(settings)
        arguments = _arguments(settings, source, run, world_size)
        with run.claimed(about) if rank == 0 else contextlib.nullcontext():
            _run_open_clip(arguments, settings, source, run)
            if rank == 0:
                run.finish(about)
    run.check_failures(max_failures)
    return str(run.checkpoint)


def about_run(settings: TrainSettings, source: PairSource) -> dict[str, Any]:
    """What makes a run the run that it is. `config` holds a model that open_clip does not know."""
    path = config_file(settings)
    config = read_config(path) if path is not None else None
    named = _with_model_name(settings)
    identity = json.dumps(source.identity, sort_keys=True)
    return {
        "model": named.in_full.model,
        "scale": asdict(named.in_full),
        "settings": named.model_dump(mode="json", exclude=FREE),
        "data": hashlib.sha256(identity.encode()).hexdigest()[:16],
        "config": config,
    }


def read_run(directory: str) -> dict[str, Any]:
    """What a run was trained with: see about_run. Raises UserError where there is no run."""
    about = RunFolder(Path(directory)).about()
    if about is None:
        raise UserError(f"{directory}: no run.json; expected a directory of `capmix train`")
    settings, config = about.get("settings"), about.get("config", "")
    is_whole = isinstance(about.get("model"), str) and isinstance(config, dict | None)
    if not is_whole or not isinstance(settings, dict) or "loss" not in settings:
        raise UserError(
            f"{directory}: its run.json is damaged (expected model, config and settings). Restore "
            "it, or name another run"
        )
    return about


def check_settings(settings: TrainSettings) -> None:
    """Raise UserError for settings that cannot be trained with, whatever the data."""
    scale = settings.in_full
    check_texts(settings.texts)
    if scale.samples < scale.checkpoints:
        raise UserError(f"train: {scale.samples} samples for {scale.checkpoints} checkpoints")
    if settings.exact and scale.samples % scale.checkpoints:
        raise UserError(
            f"--exact: {scale.samples:,} samples do not divide by {scale.checkpoints} checkpoints"
        )
    for argument in settings.open_clip:
        if argument.startswith(OTHER_MODEL):
            raise UserError(
                f"--open-clip {argument}: `capmix eval` would build another model. Write it into a "
                ".json of the model (image_size, quick_gelu, context_length) and name it by --model"
            )
    for name in filter(None, settings.report_to.split(",")):
        if name not in REPORTS or find_spec(name) is None:
            raise UserError(f"--report-to {name}: expected tensorboard or wandb, installed")
    config = config_file(settings)
    if config is not None:
        read_config(config)


def check_machine(settings: TrainSettings, world_size: int) -> None:
    """Raise UserError where open_clip, this machine and the settings do not fit each other."""
    from capmix.training.stream import plan_epoch

    is_on_cpu = on_cpu(settings, world_size)
    path = config_file(settings)
    named = _with_model_name(settings)
    know_model(named.in_full.model, read_config(path) if path is not None else None)
    _parsed(open_clip_arguments(named, "data", "logs", "run", world_size, is_on_cpu))
    scale = settings.in_full
    plan_epoch(
        scale.samples // scale.checkpoints,
        settings.device_batch(world_size),
        world_size,
        settings.data_workers,
        settings.accumulate,
        settings.exact,
    )


def place() -> tuple[int, int]:
    """Rank and number of all processes, from the same variables as open_clip takes them."""
    require(["torch", "open_clip_train", "webdataset", "braceexpand", "pandas"], "train", "train")
    from open_clip_train.distributed import is_using_distributed, world_info_from_env

    if not is_using_distributed():
        return 0, 1
    _, rank, world_size = world_info_from_env()
    return rank, world_size


def _with_model_name(settings: TrainSettings) -> TrainSettings:
    """The settings with the name of a config file's model in place of the file."""
    path = config_file(settings)
    return settings if path is None else settings.model_copy(update={"model": path.stem})


def _check_source(settings: TrainSettings, source: PairSource, world_size: int) -> None:
    if not source.shards:
        raise UserError("train: the subset has no row to train on")
    readers = world_size * max(1, settings.data_workers)
    if not settings.draws_shards and len(source.shards) < readers:
        raise UserError(
            f"train: {len(source.shards)} shards cannot be shared out among {readers} data "
            "workers; lower --workers, or draw shards with --resample"
        )
    weights = source.weights
    if weights is not None and not settings.draws_shards:
        raise UserError("--data-weights: only where shards are drawn; pass --resample")
    if weights is not None and not all(0 < weight < math.inf for weight in weights):
        raise UserError("--data-weights: expected numbers over 0")
    for name in _absent(settings, source) if isinstance(source, ExportedShards) else ():
        raise UserError(f"--texts: no text of source {name!r} in the data's first samples")


def _absent(settings: TrainSettings, source: ExportedShards) -> Sequence[str]:
    """Sources to draw texts from that none of some first samples has."""
    wanted = [name for name, weight in settings.texts.items() if weight > 0]
    found = source.first_captions if wanted else frozenset()
    return [name for name in wanted if f"caption_{name}" not in found]


def _arguments(
    settings: TrainSettings, source: PairSource, run: RunFolder, world_size: int
) -> list[str]:
    shards = source if isinstance(source, ExportedShards) else None
    weights = shards.directory_weights if shards else None
    return open_clip_arguments(
        settings,
        shards.open_clip_urls() if shards else "pool",
        str(run.path.parent),
        run.path.name,
        world_size,
        on_cpu(settings, world_size),
        None if weights is None else "::".join(str(weight) for weight in weights),
    )


def _parsed(arguments: list[str]) -> None:
    from open_clip_train.params import parse_args

    try:
        parse_args(arguments)
    except SystemExit as error:
        raise UserError("train: open_clip does not take these arguments; see above") from error


def on_cpu(settings: TrainSettings, world_size: int) -> bool:
    """Whether a run is one of the CPU. Raises UserError for a device that is not there."""
    import torch

    there = torch.cuda.is_available()
    if settings.device == "cuda" and not there:
        raise UserError("--device cuda: torch sees no GPU; `capmix doctor` lists the devices")
    is_on_cpu = settings.device == "cpu" or not there
    if is_on_cpu and world_size > 1:
        raise UserError("train: open_clip trains on several devices only where they are GPUs")
    return is_on_cpu


def _run_open_clip(
    arguments: list[str], settings: TrainSettings, source: PairSource, run: RunFolder
) -> None:
    import open_clip_train.main as main

    from capmix.training.hooks import install

    install(main, settings, source, run)
    with _written(run):
        if main.main(arguments) == -1:
            raise UserError(f"train {run.path}: open_clip refused to start; see above")


@contextlib.contextmanager
def _written(run: RunFolder) -> Iterator[None]:
    """A full or broken disk as UserError."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        full = isinstance(error, OSError) and error.errno in DISK_ERRORS
        if not full and "PytorchStreamWriter" not in str(error):
            raise
        raise UserError(
            f"train {run.path}: cannot be written ({error}). Free some space and rerun the same "
            "command to resume."
        ) from error

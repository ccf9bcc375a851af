"""Train CLIP with open_clip's trainer, on exported shards or directly from the pool.

open_clip_train.main.main runs unmodified, with the arguments of DataComp's train.py. Four of its
functions are replaced (hooks.py): get_data (reads batches with stream.py or passes.py),
train_one_epoch (adds a metrics writer), create_model_and_transforms (initialises CoCa's decoder,
and suits model and threads to a CPU) and setup_logging (logs only to the file). The replacements
stay in place until the process ends; therefore Python and grids train in a separate process
(launch.py). run.py describes the directory of a run.
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
from capmix.models.trained_run import read_run as read_run
from capmix.models.vocabulary import check_vocabulary, merges_digest
from capmix.training.coca import check_coca, check_coca_arguments, is_coca, trained_name
from capmix.training.model import config_file, know_model, read_config
from capmix.training.pairs import ExportedShards, PairSource
from capmix.training.run import RunFolder, without_default_weights
from capmix.training.scales import TrainSettings, open_clip_arguments
from capmix.training.texts import check_texts
from capmix.training.weights import check_pretrained, weights_digest

DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
# Settings of the computer, not of the run: they may change when the run resumes.
FREE = {"device", "workers", "threads", "log_every", "report_to", "accumulate"}
# open_clip arguments that change the architecture, so the model name would be wrong.
OTHER_MODEL = ("--force-quick-gelu", "--force-image-size", "--force-context-length",
               "--force-custom-text", "--image-")  # fmt: skip
REPORTS = ("tensorboard", "wandb")


def train(
    settings: TrainSettings,
    source: PairSource,
    directory: str,
    max_failures: float = MAX_FAILURES,
    title: str = "train",
) -> str:
    """Train, or resume after the last checkpoint; return the checkpoint's path.

    Under torchrun or srun, every process calls this function. Log lines of steps begin with
    `title`. Raises UserError if `directory` has another run or other files, if the settings do not
    work with the data or with open_clip, or if more than the fraction `max_failures` of the samples
    failed.
    """
    run = RunFolder(Path(directory).resolve(), title)
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
            if rank == 0:
                run.keep_merges(about["config"])
            _run_open_clip(arguments, settings, source, run)
            if rank == 0:
                run.finish(about)
    run.check_failures(max_failures)
    return str(run.checkpoint)


def about_run(settings: TrainSettings, source: PairSource) -> dict[str, Any]:
    """Return the identity of a run.

    `config` is set only if the model is a config file. `tokenizer` and `weights` are digests of the
    files that the config and `--pretrained` name; without such files the keys are missing.
    """
    path = config_file(settings)
    config = read_config(path) if path is not None else None
    named = _with_model_name(settings)
    files = {"tokenizer": merges_digest(config), "weights": weights_digest(settings)}
    identity = json.dumps(source.identity, sort_keys=True)
    return {
        "model": named.in_full.model,
        "scale": asdict(named.in_full),
        "settings": without_default_weights(named.model_dump(mode="json", exclude=FREE)),
        "data": hashlib.sha256(identity.encode()).hexdigest()[:16],
        "config": config,
    } | {name: digest for name, digest in files.items() if digest is not None}


def check_settings(settings: TrainSettings) -> None:
    """Raise UserError for settings that are invalid regardless of the data."""
    scale = settings.in_full
    check_texts(settings.texts)
    if scale.samples < scale.checkpoints:
        raise UserError(
            f"train: {scale.samples} samples are fewer than {scale.checkpoints} checkpoints"
        )
    if settings.exact and scale.samples % scale.checkpoints:
        raise UserError(
            f"--exact: {scale.samples:,} samples are not divisible by "
            f"{scale.checkpoints} checkpoints"
        )
    for argument in settings.open_clip:
        if argument.startswith(OTHER_MODEL):
            raise UserError(
                f"--open-clip {argument}: `capmix eval` would build a different model. Set it in a "
                ".json config (image_size, quick_gelu, context_length) and pass that to --model"
            )
    for name in filter(None, settings.report_to.split(",")):
        if name not in REPORTS or find_spec(name) is None:
            raise UserError(
                f"--report-to {name}: expected tensorboard or wandb, and the package installed"
            )
    path = config_file(settings)
    config = None if path is None else read_config(path)
    check_coca(settings, _with_model_name(settings).in_full.model, config)


def check_machine(settings: TrainSettings, world_size: int) -> None:
    """Raise UserError if open_clip or this computer does not support the settings."""
    from capmix.training.stream import plan_epoch

    is_on_cpu = on_cpu(settings, world_size)
    path = config_file(settings)
    named = _with_model_name(settings)
    name, config = named.in_full.model, None if path is None else read_config(path)
    know_model(name, config)
    parsed = _parsed(open_clip_arguments(named, "data", "logs", "run", world_size, is_on_cpu))
    check_pretrained(named)
    if config is not None:
        check_vocabulary(name, config)
    if is_coca(name, config):
        check_coca_arguments(name, parsed)
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
    """Return rank and world size, from the same environment variables as open_clip."""
    require(["torch", "open_clip_train", "webdataset", "braceexpand", "pandas"], "train", "train")
    from open_clip_train.distributed import is_using_distributed, world_info_from_env

    if not is_using_distributed():
        return 0, 1
    _, rank, world_size = world_info_from_env()
    return rank, world_size


def _with_model_name(settings: TrainSettings) -> TrainSettings:
    """Replace a config file in the settings with the name of its model."""
    path = config_file(settings)
    if path is None:
        return settings
    name = trained_name(path.stem, read_config(path))
    return settings.model_copy(update={"model": name})


def _check_source(settings: TrainSettings, source: PairSource, world_size: int) -> None:
    if not source.shards:
        raise UserError("train: the subset has no rows")
    readers = world_size * max(1, settings.data_workers)
    if not settings.draws_shards and len(source.shards) < readers:
        raise UserError(
            f"train: {len(source.shards)} shards are too few for {readers} data workers; reduce "
            "--workers, or draw shards with --resample"
        )
    weights = source.weights
    if weights is not None and not settings.draws_shards:
        raise UserError(
            "--data-weights: requires --resample, because weights only apply to drawn shards"
        )
    if weights is not None and not all(0 < weight < math.inf for weight in weights):
        raise UserError("--data-weights: expected finite numbers > 0")
    for name in _absent(settings, source) if isinstance(source, ExportedShards) else ():
        raise UserError(f"--texts: the first samples of the data have no text of source {name!r}")


def _absent(settings: TrainSettings, source: ExportedShards) -> Sequence[str]:
    """Return the sources to draw texts from that are missing in the first samples."""
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


def _parsed(arguments: list[str]) -> Any:
    from open_clip_train.params import parse_args

    try:
        return parse_args(arguments)
    except SystemExit as error:
        raise UserError(
            "train: open_clip rejected these arguments; see its message above"
        ) from error


def on_cpu(settings: TrainSettings, world_size: int) -> bool:
    """Return whether to train on the CPU. Raises UserError if the device is unavailable."""
    import torch

    there = torch.cuda.is_available()
    if settings.device == "cuda" and not there:
        raise UserError("--device cuda: torch finds no GPU; `capmix doctor` lists the devices")
    is_on_cpu = settings.device == "cpu" or not there
    if is_on_cpu and world_size > 1:
        raise UserError(
            "train: open_clip does not train on several CPUs; multiple devices must be GPUs"
        )
    return is_on_cpu


def _run_open_clip(
    arguments: list[str], settings: TrainSettings, source: PairSource, run: RunFolder
) -> None:
    import open_clip_train.main as main

    from capmix.training.hooks import install

    install(main, settings, source, run)
    with _written(run):
        if main.main(arguments) == -1:
            raise UserError(f"train {run.path}: open_clip did not start; see its message above")


@contextlib.contextmanager
def _written(run: RunFolder) -> Iterator[None]:
    """Convert errors of a full or broken disk to UserError."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        full = isinstance(error, OSError) and error.errno in DISK_ERRORS
        if not full and "PytorchStreamWriter" not in str(error):
            raise
        raise UserError(
            f"train {run.path}: cannot write ({error}). Free disk space and rerun the same command "
            "to resume."
        ) from error

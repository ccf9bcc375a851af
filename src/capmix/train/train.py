"""Train CLIP with open_clip's own trainer, on exported shards or straight from the pool.

open_clip_train.main.main runs as it is, with the arguments that DataComp's train.py gives it. Three
of its names are ours while it runs: get_data (batches out of train/stream.py), train_one_epoch
(the same, with a writer for the numbers) and setup_logging (to the file alone).

A run is a directory: run.json (what it was trained with), metrics.jsonl, failures.jsonl, out.log,
checkpoints/epoch_latest.pt. It goes on after its last checkpoint.
"""

import contextlib
import errno
import hashlib
import json
import logging
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from capmix.engine.local import MAX_FAILURES
from capmix.errors import UserError
from capmix.train.pairs import ExportedShards, PairSource
from capmix.train.scales import TINY, TrainSettings, open_clip_arguments
from capmix.train.texts import check_texts

ABOUT, METRICS, FAILURES = "run.json", "metrics.jsonl", "failures.jsonl"
CHECKPOINT = "checkpoints/epoch_latest.pt"
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
# Where a run goes on may differ in these: they change no more than the order of samples.
FREE = {"device", "workers", "log_every", "report_to", "accumulate"}


def train(
    settings: TrainSettings,
    source: PairSource,
    directory: str,
    max_failures: float = MAX_FAILURES,
) -> str:
    """Train, or go on after the last checkpoint; returns the checkpoint's path.

    Under torchrun every process calls this. Raises UserError where `directory` holds another run,
    where open_clip refuses, and after the run where more than `max_failures` of samples failed.
    """
    run = Path(directory).resolve()
    world_size, rank = _environment("WORLD_SIZE", 1), _environment("RANK", 0)
    check_texts(settings.texts)
    config = _config_file(settings)
    settings = settings.model_copy(update={"model": config.stem}) if config else settings
    about = _about(settings, source, config)
    known = _read_about(run)
    if rank == 0:
        _claim(run, known, about)
    if known is not None and known.get("finished"):
        return str(run / CHECKPOINT)
    _check_passes(settings, source, world_size)
    main = _open_clip_main()
    _know_model(settings.in_full.model, config)
    on_cpu = _on_cpu(settings)
    data = source.open_clip_urls() if isinstance(source, ExportedShards) else "pool"
    arguments = open_clip_arguments(
        settings, data, str(run.parent), run.name, world_size, on_cpu, _weights(source)
    )
    from capmix.train.hooks import hooked

    with hooked(main, settings, source, run) as tally, _quiet_logging(), _told(run):
        if main.main(arguments) == -1:
            raise UserError(f"train {run}: open_clip refused to start; its reason is above")
    if rank == 0:
        _write(run / ABOUT, about | {"finished": True})
    _check_failures(tally, run, max_failures)
    return str(run / CHECKPOINT)


def read_run(directory: str) -> dict[str, Any]:
    """What a run was trained with: see _about. Raises UserError where there is no run."""
    about = _read_about(Path(directory))
    if about is None:
        raise UserError(f"{directory}: no run.json; expected a directory of `capmix train`")
    return about


def register_model(path: Path) -> None:
    """Make an open_clip config file known by its stem. Raises UserError where it is none."""
    import open_clip

    read_model(path)
    open_clip.add_model_config(path)


def read_model(path: Path) -> dict[str, Any]:
    """What an open_clip config file holds. Raises UserError where it is none."""
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"model {path}: no JSON file ({error})") from error
    if not isinstance(value, dict) or not {"embed_dim", "vision_cfg", "text_cfg"} <= value.keys():
        raise UserError(f"model {path}: expected embed_dim, vision_cfg and text_cfg of open_clip")
    return value


def _open_clip_main() -> Any:
    try:
        import open_clip_train.main as main
    except ImportError as error:
        raise UserError(f"train: {error}. pip install 'capmix[train]'") from error
    return main


def _config_file(settings: TrainSettings) -> Path | None:
    """The .json file of the model, where it is not one that open_clip knows by name."""
    name = settings.in_full.model
    if settings.model is None and settings.scale == TINY:
        return Path(__file__).parent / f"{name}.json"
    return Path(name) if name.endswith(".json") else None


def _know_model(name: str, config: Path | None) -> None:
    import open_clip

    if config is not None:
        register_model(config)
    elif name not in open_clip.list_models():
        raise UserError(f"--model {name}: no model of open_clip, and no .json file of one")


def _about(settings: TrainSettings, source: PairSource, config: Path | None) -> dict[str, Any]:
    """What makes a run the run that it is. `config` holds a model that open_clip does not know."""
    identity = json.dumps(source.identity, sort_keys=True)
    return {
        "model": settings.in_full.model,
        "scale": asdict(settings.in_full),
        "settings": settings.model_dump(mode="json", exclude=FREE),
        "data": hashlib.sha256(identity.encode()).hexdigest()[:16],
        "config": read_model(config) if config is not None else None,
    }


def _read_about(run: Path) -> dict[str, Any] | None:
    try:
        about = json.loads((run / ABOUT).read_text("utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise UserError(f"{run / ABOUT}: {error}; remove the directory to train anew") from error
    return dict(about)


def _claim(run: Path, known: dict[str, Any] | None, about: dict[str, Any]) -> None:
    """Make the directory this run's own. Raises UserError where it is another's."""
    if known is None and run.exists() and any(run.iterdir()):
        raise UserError(f"--out {run}: holds something else; name an empty or a new directory")
    others = [key for key in about if known is not None and known.get(key) != about[key]]
    if others:
        raise UserError(
            f"--out {run}: holds a run with other {', '.join(others)}. Name another directory, or "
            "the same settings and data to go on with it."
        )
    if known is None:
        run.mkdir(parents=True, exist_ok=True)
        if about["config"] is not None:
            _write(run / f"{about['model']}.json", about["config"])
        _write(run / ABOUT, about)


def _write(path: Path, value: dict[str, Any]) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(value, indent=1), "utf-8")
    os.replace(temporary, path)


def _check_passes(settings: TrainSettings, source: PairSource, world_size: int) -> None:
    if not source.shards:
        raise UserError("train: the subset has no row to train on")
    readers = world_size * max(1, settings.data_workers)
    if not settings.draws_shards and len(source.shards) < readers:
        raise UserError(
            f"train: {len(source.shards)} shards cannot be shared out among {readers} data "
            "workers; lower --workers, or draw shards with --resample"
        )


def _on_cpu(settings: TrainSettings) -> bool:
    import torch

    if settings.device == "auto":
        return not torch.cuda.is_available()
    return settings.device == "cpu"


def _weights(source: PairSource) -> str | None:
    weights = source.directory_weights if isinstance(source, ExportedShards) else None
    return None if weights is None else "::".join(str(weight) for weight in weights)


def _check_failures(tally: Any, run: Path, max_failures: float) -> None:
    total = tally.ok + tally.failed
    if total and tally.failed / total > max_failures:
        raise UserError(
            f"train {run}: finished, but {tally.failed:,} of {total:,} samples failed, over the "
            f"bound of {max_failures:.1%}; {FAILURES} there names them"
        )


def _environment(name: str, otherwise: int) -> int:
    return int(os.environ.get(name, otherwise))


@contextlib.contextmanager
def _told(run: Path) -> Iterator[None]:
    """Errors that the user can mend, without the traceback that a data worker or torch puts on."""
    try:
        yield
    except UserError as error:
        raise UserError(str(error).rpartition("UserError: ")[2]) from error
    except (OSError, RuntimeError) as error:
        full = isinstance(error, OSError) and error.errno in DISK_ERRORS
        if not full and "PytorchStreamWriter" not in str(error):
            raise
        raise UserError(
            f"train {run}: cannot be written ({error}). Make room; the same command goes on."
        ) from error


@contextlib.contextmanager
def _quiet_logging() -> Iterator[None]:
    """The root logger as it was, whatever open_clip adds to it."""
    handlers, level = list(logging.root.handlers), logging.root.level
    try:
        yield
    finally:
        for handler in logging.root.handlers:
            if handler not in handlers:
                handler.close()
        logging.root.handlers[:] = handlers
        logging.root.setLevel(level)

"""The commands that train and evaluate: train, eval, evalsets, probe."""

import argparse
import shlex
from typing import TYPE_CHECKING

from capmix.cli.options import fraction, settings_of
from capmix.errors import UserError

if TYPE_CHECKING:
    from capmix.train.pairs import PairSource
    from capmix.train.scales import TrainSettings

    Commands = argparse._SubParsersAction[argparse.ArgumentParser]


def add_train(commands: "Commands") -> None:
    train = commands.add_parser(
        "train",
        help="train CLIP with open_clip, on exported shards or straight from a pool",
        description="Train CLIP with open_clip's trainer and DataComp's settings.",
    )
    train.add_argument("--scale", default="tiny", help="tiny, debug, small, medium, large, xlarge")
    train.add_argument("--out", required=True, help="directory of the run; it goes on from there")
    train.add_argument("--data", help="directory of tars; several are joined by ::")
    train.add_argument("--data-weights", help="of each tar of each directory, joined by ::")
    train.add_argument("--pool", help="with --work and --subset: the pool, nothing rewritten")
    train.add_argument("--work", help="the work directory of the pool")
    train.add_argument("--subset", help="what `capmix mix` wrote")
    train.add_argument(
        "--texts",
        metavar="SOURCE=P,...",
        help="each visit of a sample draws one of its texts, such as raw=0.5,blip2=0.5",
    )
    train.add_argument(
        "--model", help="an open_clip model or a .json of one (default: the scale's)"
    )
    train.add_argument("--loss", choices=["clip", "siglip"], default="clip")
    train.add_argument("--seed", type=int, default=0)
    train.add_argument("--samples", type=int, help="seen in all (default: the scale's)")
    train.add_argument("--batch-size", type=int, help="of all devices (default: the scale's)")
    train.add_argument("--learning-rate", type=float, help="default: the scale's")
    train.add_argument("--warmup", type=int, metavar="STEPS", help="default: the scale's")
    train.add_argument("--checkpoints", type=int, help="times it is saved (default: 5; tiny: 2)")
    train.add_argument("--accumulate", type=int, default=1, help="parts of a device's batch")
    train.add_argument("--precision", help="amp, amp_bf16, fp32, ... (default: amp; CPU: fp32)")
    train.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    train.add_argument("--workers", type=int, help="data workers of a device (default: 4; tiny: 1)")
    train.add_argument(
        "--exact",
        action="store_true",
        help="exactly as many samples; see docs/training.md",
    )
    train.add_argument(
        "--resample",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="draw shards with replacement, as DataComp does (not at tiny), or pass by pass",
    )
    train.add_argument("--grad-clip", type=float, metavar="NORM")
    train.add_argument("--log-every", type=int, metavar="STEPS")
    train.add_argument("--report-to", default="", help="tensorboard, wandb or both with a comma")
    train.add_argument("--max-failures", type=fraction, default=0.01, metavar="FRACTION")
    train.add_argument(
        "--open-clip",
        default="",
        metavar="'ARGUMENTS'",
        help="more arguments for its trainer, such as --open-clip='--lock-text'",
    )
    train.set_defaults(run=_train)


def _train(options: argparse.Namespace) -> None:
    from capmix.train.train import train

    settings = _settings(options)
    source = _source(options, settings)
    print(train(settings, source, options.out, options.max_failures))


def _settings(options: argparse.Namespace) -> "TrainSettings":
    from capmix.train.scales import TrainSettings
    from capmix.train.texts import parse_texts

    options.texts = parse_texts(options.texts) if options.texts else {}
    options.open_clip = shlex.split(options.open_clip)
    return settings_of(TrainSettings, options)


def command_line(settings: "TrainSettings") -> list[str]:
    """The options of `capmix train` that give these settings."""
    found = []
    for name, value in settings.model_dump(exclude_defaults=True).items():
        option = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            found.append(option if value else option.replace("--", "--no-", 1))
        elif isinstance(value, dict):
            found.append(f"{option}={','.join(f'{key}={one}' for key, one in value.items())}")
        else:
            found.append(f"{option}={shlex.join(value) if isinstance(value, list) else value}")
    return found


def _source(options: argparse.Namespace, settings: "TrainSettings") -> "PairSource":
    from capmix import jobs
    from capmix.train.pairs import ExportedShards

    from_pool = [options.pool, options.work, options.subset]
    if options.data and not any(from_pool):
        weights = [_weight(one) for one in (options.data_weights or "").split("::") if one]
        directories = options.data.split("::")
        if weights and len(weights) != len(directories):
            raise UserError(f"--data-weights: {len(weights)} for {len(directories)} directories")
        return ExportedShards(directories, weights or None, bool(settings.texts))
    if not all(from_pool) or options.data:
        raise UserError("train: give --data SHARDS, or --pool POOL --work WORK --subset NAME")
    work = jobs.open_work(options.pool, options.work, options.max_failures)
    return jobs.training_source(work, options.subset, settings)


def _weight(text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise UserError(f"--data-weights: {text!r} is no number") from error


def add_evaluate(commands: "Commands") -> None:
    evaluate = commands.add_parser("eval", help="evaluate a run or an open_clip model zero-shot")
    evaluate.add_argument("model", help="directory of a run, or ARCHITECTURE/TAG of open_clip")
    evaluate.add_argument(
        "--evalsets",
        default="evalsets",
        help="directory of evaluation sets, or `embedded` (default: evalsets)",
    )
    evaluate.add_argument(
        "--tasks",
        help="datacomp (all 40; the default), keys of its tasks, or paths of sets below "
        "--evalsets; see docs/evaluation.md",
    )
    evaluate.add_argument(
        "--out", help="directory for results (default: the run's, or below ./evaluations)"
    )
    evaluate.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    evaluate.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    evaluate.set_defaults(run=_evaluate)

    evalsets = commands.add_parser("evalsets", help="list or fetch DataComp's evaluation sets")
    evalsets.add_argument("action", choices=["list", "fetch"])
    evalsets.add_argument("--tasks", default="datacomp", help="datacomp, or keys with commas")
    evalsets.add_argument("--out", default="evalsets", help="directory (default: evalsets)")
    evalsets.set_defaults(run=_evalsets)


def _evaluate(options: argparse.Namespace) -> None:
    from capmix.evaluate.results import evaluate, fetch_command, results_folder

    found = evaluate(
        options.model,
        options.tasks,
        options.evalsets,
        options.out,
        options.device,
        options.dtype,
    )
    print("\n".join(found.text()))
    if found.lines:
        print(f"results: {results_folder(options.model, options.out)}")
    if found.missing:
        command = fetch_command(found.missing, options.evalsets)
        print(f"not there: {len(found.missing)} sets. {command}")
    if found.broken:
        raise UserError("; ".join(found.broken))
    if not found.lines:
        raise UserError(f"eval: none of the evaluation sets is below {options.evalsets}")


def _evalsets(options: argparse.Namespace) -> None:
    from pathlib import Path

    from capmix.evaluate.fetch import fetch
    from capmix.evaluate.tasks import EvalTask, chosen_tasks

    tasks = chosen_tasks(options.tasks)
    unknown = [task for task in tasks if not isinstance(task, EvalTask)]
    if unknown:
        raise UserError(f"--tasks: {unknown[0]!r} is no task of DataComp; `capmix evalsets list`")
    known = [task for task in tasks if isinstance(task, EvalTask)]
    if options.action == "fetch":
        for folder in fetch(known, options.out):
            print(folder)
        return
    for task in known:
        there = any((Path(options.out) / name).exists() for name in task.folders)
        print(
            f"{'there  ' if there else 'missing'}  {task.key:<52} {task.images:>7,} images  "
            f"{task.main_metric or 'no main metric':<22} {task.hub}"
        )


def add_probe(commands: "Commands") -> None:
    probe = commands.add_parser(
        "probe",
        help="rank recipes in seconds each: small projections of frozen embeddings",
        description="A proxy for training: see docs/evaluation.md for how well it agrees with it.",
    )
    probe.add_argument("pool", help="as in caption and mix")
    probe.add_argument("--work", required=True, help="work directory that belongs to this pool")
    probe.add_argument("--subsets", help="comma-separated (default: every one that mix wrote)")
    probe.add_argument("--seeds", default="0,1,2,3,4", help="comma-separated (default: 0 to 4)")
    probe.add_argument(
        "--evalsets", default="embedded", help="comma-separated sets (default: embedded)"
    )
    probe.add_argument("--max-failures", type=fraction, default=0.01, metavar="FRACTION")
    probe.set_defaults(run=_probe)


def _probe(options: argparse.Namespace) -> None:
    from capmix import jobs
    from capmix.report.ranking import ranking

    work = jobs.open_work(options.pool, options.work, options.max_failures)
    subsets = options.subsets.split(",") if options.subsets else work.subsets()
    if not subsets:
        raise UserError(f"no subset in {options.work}: run `capmix mix` first")
    results = jobs.probe(work, subsets, _seeds(options.seeds), options.evalsets.split(","))
    print("\n".join(ranking(results)))


def _seeds(text: str) -> list[int]:
    try:
        return [int(seed) for seed in text.split(",")]
    except ValueError as error:
        raise UserError(f"--seeds {text}: expected whole numbers such as 0,1,2") from error

"""The commands that train and evaluate: train, eval, evalsets, probe."""

import argparse
from typing import TYPE_CHECKING

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
    train.add_argument("--checkpoints", type=int, help="times the run is saved (default: 5)")
    train.add_argument("--accumulate", type=int, default=1, help="parts of a device's batch")
    train.add_argument("--precision", help="amp, amp_bf16, fp32, ... (default: amp; CPU: fp32)")
    train.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    train.add_argument("--workers", type=int, help="data workers of a device (default: 4)")
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
    train.add_argument("--max-failures", type=float, default=0.01, metavar="FRACTION")
    train.add_argument(
        "--open-clip", default="", metavar="'ARGUMENTS'", help="more arguments for its trainer"
    )
    train.set_defaults(run=_train)


def _train(options: argparse.Namespace) -> None:
    from capmix.train.train import train

    settings = _settings(options)
    print(train(settings, _source(options, settings), options.out, options.max_failures))


def _settings(options: argparse.Namespace) -> "TrainSettings":
    import shlex
    from dataclasses import fields

    from capmix.train.scales import TrainSettings
    from capmix.train.texts import parse_texts

    given = {f.name: getattr(options, f.name) for f in fields(TrainSettings) if f.name in options}
    given["texts"] = parse_texts(options.texts) if options.texts else ()
    return TrainSettings(**given, extra=tuple(shlex.split(options.open_clip)))


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

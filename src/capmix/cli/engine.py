"""Options of the commands that an engine runs, and the commands about runs: failures and plan."""

import argparse
import sys
from typing import TYPE_CHECKING

from capmix.cli.options import checked, settings_of

if TYPE_CHECKING:
    from capmix.engine.settings import EngineSettings


def add_engine(command: argparse.ArgumentParser, batches: bool = True) -> None:
    """Where a command's work is done; with `batches`, how long a model's batch may take."""
    command.add_argument(
        "--engine", choices=["local", "ray"], default="local", help="this machine, or a Ray cluster"
    )
    command.add_argument(
        "--workers",
        type=int,
        help="processes, or actors of Ray (default: one a GPU; without, one process, or as many "
        "actors as there is room for)",
    )
    command.add_argument(
        "--address", help="of the Ray cluster (default: RAY_ADDRESS, or start one)"
    )
    command.add_argument("--gpus-per-worker", type=float, help="ray: a fraction shares a GPU")
    command.add_argument("--cpus-per-worker", type=float, default=1.0, help="ray (default: 1)")
    if batches:
        command.add_argument(
            "--batch-timeout", type=float, default=600.0, help="seconds a batch may take"
        )
        command.add_argument(
            "--retry-failed", action="store_true", help="try again what failed before"
        )


def engine_of(options: argparse.Namespace) -> "EngineSettings":
    """The engine that the options name. Raises UserError."""
    from capmix.engine.settings import EngineSettings

    names = ("workers", "address", "gpus_per_worker", "cpus_per_worker")
    given = {name: getattr(options, name) for name in names}
    return checked(options, lambda: EngineSettings(name=options.engine, **given))


def add_failures(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """The command `failures`."""
    command = commands.add_parser(
        "failures", help="every failed and dropped sample of a work directory, with its reason"
    )
    command.add_argument("--work", required=True)
    command.add_argument("--stage", help="of one folder alone, such as captions/blip2 or samples")
    command.add_argument("--status", choices=["failed", "dropped"], help="default: both")
    command.add_argument("--out", help="a .csv file; default: tab-separated lines are printed")
    command.set_defaults(run=_failures)


def _failures(options: argparse.Namespace) -> None:
    from capmix.inspect.failures import failures, write_csv, write_lines
    from capmix.storage.store import Store

    found = failures(Store(options.work), options.stage, options.status)
    counts = write_csv(options.out, found) if options.out else write_lines(sys.stdout, found)
    for (stage, reason), number in sorted(counts.items()):
        print(f"{stage}: {number:,} {reason}", file=sys.stderr)
    if not counts:
        print("no sample failed or was dropped", file=sys.stderr)


def add_plan(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """The command `plan`."""
    command = commands.add_parser(
        "plan", help="hours, bytes and price of captioning and scoring a pool, from timing a part"
    )
    command.add_argument("pool", help="directory or URL of tars or images, or `embedded`")
    command.add_argument("--model", default="mini", help="the captioner, as in caption")
    command.add_argument("--scorer", default="mini", help="the scorer, as in score")
    command.add_argument("--captions-per-image", type=int, default=1)
    command.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    command.add_argument("--samples", type=int, default=512, help="to time (default: 512)")
    command.add_argument("--workers", type=int, default=1, help="GPUs or machines to plan for")
    command.add_argument("--images", type=int, help="plan for so many instead of the pool's")
    command.add_argument("--price", type=float, default=0.0, help="of one worker for an hour")
    command.set_defaults(run=_plan)


def _plan(options: argparse.Namespace) -> None:
    from capmix.caption.settings import CaptionSettings
    from capmix.inspect.plan import PlanSettings, plan
    from capmix.score.settings import ScoreSettings

    names = ("model", "captions_per_image", "device")
    given = {name: getattr(options, name) for name in names}
    captions = checked(options, lambda: CaptionSettings(**given))
    scores = checked(options, lambda: ScoreSettings(model=options.scorer, device=options.device))
    settings = settings_of(PlanSettings, options)
    print("\n".join(plan(options.pool, captions, scores, settings).lines()))

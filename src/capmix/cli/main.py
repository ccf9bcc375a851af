"""The command line: run a command, show messages, turn errors into exit codes.

Heavy modules are imported only when a command needs them: this file lists the commands, and the
other files of this folder define them.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

from cyclopts import App, CycloptsError, Group, MissingArgumentError

from capmix.cli.groups import OWN
from capmix.cli.malloc import keep_freed_memory
from capmix.cli.signals import RESUME, end_now, stopped_by_signals
from capmix.cli.streams import (
    OutputError,
    checked_output,
    drop_unwritten,
    occupy_closed,
    say,
    show_any_character,
)
from capmix.cli.tokens import asks_for_json, behind_command
from capmix.engine import messages
from capmix.engine.messages import MessageForm
from capmix.errors import INTERNAL_ERROR, UserError
from capmix.settings.printable import printable

OK, USER_ERROR, STOPPED, BROKEN_PIPE = 0, 2, 130, 141
ABOUT = "Caption an image-text pool, mix the captions with raw text, and train on the mix."
EPILOGUE = (
    "Exit codes: 0 success, 2 an error you can fix (one line on standard error), 70 an internal "
    "error, 130 interrupted, 141 output pipe closed. Documentation of each command: docs/commands. "
    "Every command accepts --quiet, --verbose, --log-file FILE and --progress bar|plain|json|none."
)
START, PREPARE, USE, INSPECT = "Start here", "Prepare a pool", "Use the result", "Inspect"


@dataclass(frozen=True)
class Command:
    """A command: help section, name, module in this folder, summary and example."""

    section: str
    name: str
    file: str
    about: str
    example: str

    @property
    def function(self) -> str:
        """Name of the function that runs it."""
        return f"{self.name}_" if self.name == "import" else self.name


COMMANDS = (
    Command(
        START,
        "demo",
        "pipeline",
        "Run every stage on the embedded pool and models.",
        "capmix demo",
    ),
    Command(
        START,
        "run",
        "pipeline",
        "Run the stages of a pipeline file; finished stages are skipped.",
        "capmix run examples/pool.yaml",
    ),
    Command(
        START, "doctor", "inspect", "Check optional dependencies and devices.", "capmix doctor"
    ),
    Command(
        START,
        "models",
        "inspect",
        "List the captioners and scorers with short names.",
        "capmix models",
    ),
    Command(
        START,
        "plan",
        "inspect",
        "Estimate hours, bytes and price of captioning and scoring.",
        "capmix plan ./shards --model Salesforce/blip2-opt-2.7b --workers 8 --price 2.5",
    ),
    Command(
        PREPARE,
        "caption",
        "stages",
        "Write captions for every image of a pool.",
        "capmix caption ./shards --work ./work --source blip2 --model Salesforce/blip2-opt-2.7b",
    ),
    Command(
        PREPARE,
        "rewrite",
        "stages",
        "Rewrite texts into a new source: fuse, translate, split, ...",
        "capmix rewrite --work ./work --source fused --from raw,blip2 --model Qwen/Qwen3-4B "
        "--prompt 'Merge into one caption: {raw} / {blip2}'",
    ),
    Command(
        PREPARE,
        "score",
        "stages",
        "Compute the image-text similarity of texts.",
        "capmix score --work ./work --sources raw,blip2 --model ViT-L-14-quickgelu/openai",
    ),
    Command(
        PREPARE,
        "import",
        "stages",
        "Import precomputed captions or scores, joined on uid.",
        "capmix import captions captions.parquet --work ./work --source blip2",
    ),
    Command(
        PREPARE,
        "annotate",
        "stages",
        "Compute columns for recipes from saved embeddings, texts or images.",
        "capmix annotate --work ./work --method semdedup --epsilon 0.05",
    ),
    Command(
        PREPARE,
        "measure",
        "stages",
        "Measure diversity, noise and topics of texts by source.",
        "capmix measure --work ./work --sources raw,blip2",
    ),
    Command(
        PREPARE,
        "mix",
        "stages",
        "Apply a recipe and write the selected subset.",
        "capmix mix --work ./work --recipe raw-top+synthetic-above --synthetic blip2",
    ),
    Command(PREPARE, "recipes", "stages", "List the shipped recipes.", "capmix recipes"),
    Command(
        USE,
        "export",
        "stages",
        "Write a subset as shards, tables or image files, for trainers and the Hub.",
        "capmix export --work ./work --subset raw-top30+blip2-above --out ./mixed",
    ),
    Command(
        USE,
        "train",
        "train",
        "Train CLIP with open_clip, on exported shards or from a pool.",
        "capmix train --scale small --data ./mixed --out ./runs/mixed",
    ),
    Command(
        USE,
        "eval",
        "train",
        "Evaluate a run or an open_clip model zero-shot.",
        "capmix eval ./runs/mixed --evalsets ./evalsets",
    ),
    Command(
        USE,
        "evalsets",
        "train",
        "List or fetch DataComp's evaluation sets.",
        "capmix evalsets fetch --tasks cifar10,mnist",
    ),
    Command(
        USE,
        "probe",
        "train",
        "Rank subsets with probes of frozen embeddings, in seconds per subset.",
        "capmix probe --work ./work --subsets raw,raw-top30",
    ),
    Command(
        USE,
        "tune",
        "train",
        "Choose a recipe's parameters with probes, within a budget.",
        "capmix tune --work ./work --recipe raw-top --fraction 0.05..0.9 --budget 20",
    ),
    Command(
        INSPECT,
        "status",
        "inspect",
        "Show the progress of each stage.",
        "capmix status --work ./work",
    ),
    Command(
        INSPECT,
        "clean",
        "inspect",
        "Show or remove leftovers, subsets and sources.",
        "capmix clean --work ./work --source blip2 --yes",
    ),
    Command(
        INSPECT,
        "verify",
        "inspect",
        "Compare every file with the digest recorded when it was written.",
        "capmix verify --work ./work --images",
    ),
    Command(
        INSPECT,
        "failures",
        "inspect",
        "List every failed and dropped sample with its reason.",
        "capmix failures --work ./work --stage captions/blip2 --out failures.csv",
    ),
    Command(
        INSPECT,
        "report",
        "inspect",
        "Write an HTML report about a work directory.",
        "capmix report --work ./work --figures ./figures",
    ),
    Command(
        INSPECT,
        "view",
        "inspect",
        "Browse, edit and review captions in the browser.",
        "capmix view --work ./work",
    ),
)


def entry() -> NoReturn:
    """Run the `capmix` command and exit."""
    occupy_closed()
    show_any_character()
    try:
        code = main()
    except KeyboardInterrupt:  # a second Ctrl-C while the first one was being handled
        code = STOPPED
    drop_unwritten()
    if code != OK:  # threads may still wait minutes for a response
        end_now(code)
    sys.exit(code)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    0 is success, 2 an error that the user can fix, 70 an internal error, 130 an interrupt, and 141
    a closed output pipe (the code that a shell reports for SIGPIPE).
    """
    given = sys.argv[1:] if arguments is None else arguments
    with messages.shown():
        if asks_for_json(given):  # before parsing: errors about options are JSON too
            messages.change(MessageForm(progress="json"))
        return _main(behind_command(given))


def _main(tokens: list[str]) -> int:
    app = make_app()
    try:
        keep_freed_memory()
        with checked_output(), stopped_by_signals():
            try:
                app(tokens, exit_on_error=False, print_error=False, result_action="return_value")
            except SystemExit as error:
                if error.code:
                    raise
            sys.stdout.flush()  # raises OutputError if the pipe is closed or the disk full
        return OK
    except UserError as error:
        return _failed(str(error))
    except CycloptsError as error:
        return _failed(_usage(error))
    except KeyboardInterrupt:
        _say_error(RESUME, "\n")
        return STOPPED
    except OutputError as error:
        if error.is_closed_pipe:
            return BROKEN_PIPE
        return _failed(
            f"cannot write to standard output: {error}. Rerun the same command; finished work is "
            "not repeated"
        )
    except ImportError as error:
        from capmix.models.registry import missing_module

        return _failed(missing_module(error))
    except (Exception, SystemExit) as error:
        from capmix.storage.filesystem import storage_errors, storage_message

        if isinstance(error, storage_errors()):
            return _failed(storage_message(error))
        from capmix.cli.crash import crash_line

        _failed(crash_line(error, tokens))
        return INTERNAL_ERROR


def _usage(error: CycloptsError) -> str:
    """Return what is wrong with the options, in one line."""
    if not isinstance(error, MissingArgumentError) or error.argument is None:
        return " ".join(str(error).split())
    command = " ".join(error.command_chain or ())
    problem = "requires a value" if error.keyword else "is required"
    return f"{command}: {error.argument.name} {problem}; see `capmix {command} --help`"


def make_app() -> App:
    """Build the app with all commands; each is imported when it runs."""
    app = App(
        name="capmix",
        help=ABOUT,
        help_epilogue=EPILOGUE,
        help_flags=["-h", "--help"],
        group_parameters=OWN,
        version=_version,
        version_flags=["--version"],
        help_format="plaintext",
        suppress_keyboard_interrupt=False,
    )
    sections = (START, PREPARE, USE, INSPECT)
    groups = {name: Group(name, sort_key=order) for order, name in enumerate(sections)}
    for one in COMMANDS:
        app.command(
            f"capmix.cli.{one.file}:{one.function}",
            name=one.name,
            help=one.about,
            help_epilogue=f"Example: {one.example}",
            group=groups[one.section],
        )
    app.register_install_completion_command(
        name="completion", help="Install tab completion for your shell.", group=groups[START]
    )
    return app


def _version() -> str:
    from importlib.metadata import version

    return version("capmix")


def _failed(message: str) -> int:
    from capmix.storage.filesystem import without_secrets

    _say_error(f"capmix: {printable(without_secrets(message))}")
    return USER_ERROR


def _say_error(line: str, before: str = "") -> None:
    if not messages.say_error(line):
        say(f"{before}{line}")

"""The command line: parses arguments, calls the jobs, prints. Nothing heavy is imported here."""

import argparse
import contextlib
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn, TypeVar

from capmix.cli.engine import add_engine, add_failures, add_plan, engine_of
from capmix.cli.malloc import keep_freed_memory
from capmix.cli.options import fraction, positive, settings_of
from capmix.cli.report import add_measure, add_report, add_view
from capmix.cli.signals import GO_ON, end_now, stopped_by_signals
from capmix.cli.train import add_evaluate, add_probe, add_train
from capmix.errors import UserError

if TYPE_CHECKING:
    from pydantic import BaseModel

    from capmix.jobs import Work

    Model = TypeVar("Model", bound=BaseModel)

OK, USER_ERROR, STOPPED, BROKEN_PIPE = 0, 2, 130, 141


def entry() -> NoReturn:
    """The command `capmix`: run it and end the process."""
    code = main()
    if code != OK:  # threads may still wait for an answer of minutes
        end_now(code)
    sys.exit(code)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit code: 0; 2 for an error to mend; 130 if stopped; 141 where
    nobody reads what it prints, as a shell would say."""
    try:
        options = _parser().parse_args(arguments)
        keep_freed_memory()
        with stopped_by_signals():
            options.run(options)
            sys.stdout.flush()  # where its reader has ended, that shows here
        return OK
    except UserError as error:
        _tell(str(error))
        return USER_ERROR
    except KeyboardInterrupt:
        print(f"\n{GO_ON}", file=sys.stderr)
        return STOPPED
    except BrokenPipeError:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return BROKEN_PIPE
    except Exception as error:
        from capmix.storage.filesystem import storage_errors

        if not isinstance(error, storage_errors()):
            raise
        _tell(f"the storage failed: {error}. When it is mended, the same command goes on from here")
        return USER_ERROR


def _tell(message: str) -> None:
    from capmix.storage.filesystem import without_secrets

    with contextlib.suppress(OSError):  # nobody may be there to read it
        print(f"capmix: {without_secrets(message)}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="capmix",
        description="Caption an image-text pool, mix the captions with raw text, train on it.",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    demo = commands.add_parser("demo", help="the whole loop on the embedded pool and models")
    demo.add_argument("--work", help="work directory (default: capmix-demo)")
    demo.set_defaults(run=_demo)

    run = commands.add_parser("run", help="run the stages of a pipeline file; what is done is kept")
    run.add_argument("pipeline", help="YAML file; see examples/")
    run.add_argument("--work", help="work directory, instead of the file's")
    run.add_argument("--force", action="store_true", help="make again what other settings made")
    run.add_argument("--retry-failed", action="store_true", help="try again what failed before")
    run.set_defaults(run=_run)

    caption = _on_pool(commands, "caption", "write captions for every image of a pool")
    caption.add_argument("--source", required=True, help="name of these captions, such as mini")
    caption.add_argument(
        "--model",
        default="mini",
        help="mini; a transformers hub id or folder; open_clip:ARCHITECTURE/TAG; "
        "server:URL (OpenAI-compatible, ends in /v1); field:NAME of the samples' json",
    )
    caption.add_argument("--revision", help="of a hub model")
    caption.add_argument("--prompt", help="for models that take one")
    caption.add_argument("--top-k", type=int, default=50)
    caption.add_argument("--temperature", type=float, default=0.75, help="0 takes the likeliest")
    caption.add_argument("--min-tokens", type=int, default=5)
    caption.add_argument("--max-tokens", type=int, default=40)
    caption.add_argument("--captions-per-image", type=int, default=1)
    caption.add_argument("--seed", type=int, default=0)
    caption.add_argument("--dtype", default="auto", help="auto, float32, bfloat16 or float16")
    caption.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    caption.add_argument("--batch-size", type=int, help="images at once (default: by device)")
    caption.add_argument(
        "--max-side", type=int, help="larger images go to a server as JPEG of this"
    )
    caption.add_argument("--concurrency", type=int, default=32, help="requests to a server at once")
    caption.add_argument("--timeout", type=float, default=120.0, help="of a request, in seconds")
    caption.add_argument("--retries", type=int, default=5, help="of a request to a busy server")
    caption.add_argument("--language", help="flag captions in another one, such as en")
    _exact_decode(caption)
    add_engine(caption)
    caption.add_argument(
        "--compile-decoder",
        action="store_true",
        help="on a GPU: a minute at the start, less time for each token",
    )
    caption.add_argument(
        "--trust-remote-code",
        action="store_true",
        help="DANGER: runs Python code that the model's author wrote, with your rights",
    )
    caption.set_defaults(run=_caption)

    score = _on_pool(commands, "score", "image-text similarity of the texts of some sources")
    score.add_argument("--sources", default="raw", help="comma-separated (default: raw)")
    score.add_argument(
        "--model",
        default="mini",
        help="mini; ARCHITECTURE/TAG, local-dir:FOLDER or hf-hub:ID of open_clip; transformers:ID",
    )
    score.add_argument(
        "--save-embeddings", action="store_true", help="keep image vectors for later sources"
    )
    score.add_argument("--dtype", default="auto", help="auto, float32, bfloat16 or float16")
    score.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    _exact_decode(score)
    add_engine(score)
    score.set_defaults(run=_score)

    imported = commands.add_parser("import", help="captions or scores that others computed, by uid")
    imported.add_argument("kind", choices=["captions", "scores"])
    imported.add_argument("files", nargs="+", help="CSV or parquet files, or patterns")
    imported.add_argument("--work", required=True)
    imported.add_argument("--pool", help="where the work directory is new: its pool")
    imported.add_argument(
        "--source", required=True, help="name of the captions; raw for its scores"
    )
    imported.add_argument("--uid-column", default="uid")
    imported.add_argument("--text-column", default="text", help="of captions (default: text)")
    imported.add_argument("--column", default="score", help="of scores (default: score)")
    imported.add_argument("--scorer", default="imported", help="name of the scorer")
    imported.add_argument("--max-failures", type=fraction, default=0.01, metavar="FRACTION")
    imported.add_argument("--force", action="store_true", help="write over a model's captions")
    imported.set_defaults(run=_import)

    measure = _on_pool(commands, "measure", "diversity, noise and topics of texts by source")
    add_measure(measure)
    add_engine(measure, batches=False)

    annotate = _on_pool(commands, "annotate", "columns for recipes, from saved embeddings")
    annotate.add_argument(
        "--method",
        required=True,
        choices=["clusters", "semdedup", "normsim", "cliploss"],
        help="k-means and a reference set's clusters; near duplicates within clusters; closeness "
        "to a reference set; negCLIPLoss",
    )
    annotate.add_argument("--name", help="what recipes call it (default: the method)")
    annotate.add_argument("--embeddings", help="below embeddings/ (default: the only ones)")
    annotate.add_argument("--reference", help=".npy of vectors, or a work directory with such")
    annotate.add_argument("--clusters", type=positive, help="default: one for 256 samples")
    annotate.add_argument("--of", default="clusters", help="semdedup: a clusters annotation")
    annotate.add_argument("--epsilon", type=float, default=0.05, help="semdedup: 1 - similarity")
    annotate.add_argument("--norm", choices=["inf", "2"], default="inf", help="normsim")
    annotate.add_argument("--source", default="raw", help="cliploss: whose texts")
    annotate.add_argument("--model", default="mini", help="cliploss: the scorer, as in score")
    annotate.add_argument("--temperature", type=float, default=0.01, help="cliploss")
    annotate.add_argument("--batch", type=positive, default=32_768, help="cliploss")
    annotate.add_argument("--rounds", type=positive, default=10, help="cliploss")
    annotate.add_argument("--seed", type=int, default=0)
    annotate.set_defaults(run=_annotate)

    mix = _on_pool(commands, "mix", "apply a recipe and write the subset that it selects")
    mix.add_argument("--recipe", required=True, help="a shipped recipe's name or a .yaml file")
    mix.add_argument("--fraction", help="over 0 and at most 1; several, with commas: a sweep")
    mix.add_argument("--synthetic", help="the recipe's synthetic source; several: a sweep")
    mix.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="any other parameter of the recipe; may be given several times",
    )
    mix.add_argument("--where", metavar="SQL", help="a condition for every clause of the recipe")
    mix.add_argument("--distinct", metavar="COLUMN", help="one sample for each of its values")
    mix.add_argument(
        "--uids",
        action="append",
        default=[],
        metavar="NAME=FILE",
        help="uids for in_list('NAME'): DataComp's .npy, or a text file with one a line",
    )
    mix.add_argument("--list", action=_ListRecipes, help="list the recipes that come with capmix")
    mix.add_argument("--out", help="name of the subset (default: the recipe's)")
    mix.add_argument("--npy", action="store_true", help="DataComp's .npy of uids also for captions")
    mix.add_argument("--seed", type=int, default=0)
    mix.add_argument("--workers", type=positive, help="threads (default: one a core)")
    mix.add_argument("--explain", action="store_true", help="print the SQL")
    mix.add_argument("--scorer", help="whose scores (default: the only one there is)")
    mix.set_defaults(run=_mix)

    recipes = commands.add_parser("recipes", help="list the recipes that come with capmix")
    recipes.set_defaults(run=lambda _: _print_recipes())

    export = _on_pool(commands, "export", "write a subset as shards of images and texts")
    export.add_argument("--subset", required=True)
    export.add_argument("--out", required=True, help="directory for the shards")
    export.add_argument("--samples-per-shard", type=positive, default=10_000)
    export.add_argument(
        "--format",
        choices=["webdataset", "datacomp", "parquet", "jsonl", "csv"],
        default="webdataset",
        help="tars (default); tars with untouched members, as DataComp's resharder writes them; "
        "parquet with images, for Hugging Face datasets; image files with "
        ".txt and JSON lines, for kohya and LLaVA; uid and text alone",
    )
    add_engine(export, batches=False)
    export.set_defaults(run=_export)

    add_train(commands)

    add_evaluate(commands)
    add_probe(commands)

    add_report(commands)
    add_view(commands)

    add_failures(commands)
    add_plan(commands)

    doctor = commands.add_parser("doctor", help="what is installed, which device, what is missing")
    doctor.set_defaults(run=_doctor)
    return parser


def _on_pool(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]", name: str, about: str
) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=about, description=about)
    command.add_argument("pool", help="directory or URL of tars or images, or `embedded`")
    command.add_argument("--work", required=True, help="work directory that belongs to this pool")
    command.add_argument("--max-failures", type=fraction, default=0.01, metavar="FRACTION")
    command.add_argument("--force", action="store_true", help="make again what other settings made")
    return command


def _work(options: argparse.Namespace) -> "Work":
    from capmix import jobs

    how = options.max_failures, options.force
    if "engine" not in options:
        return jobs.open_work(options.pool, options.work, *how)
    retry = getattr(options, "retry_failed", False)
    return jobs.open_work(options.pool, options.work, *how, engine_of(options), retry)


def _demo(options: argparse.Namespace) -> None:
    from capmix.pipeline.run import demo_file

    _run_file(demo_file(), options.work)


def _run(options: argparse.Namespace) -> None:
    _run_file(options.pipeline, options.work, options.force, options.retry_failed)


def _run_file(path: str, work: str | None, force: bool = False, retry_failed: bool = False) -> None:
    from capmix.pipeline.config import load_pipeline
    from capmix.pipeline.run import run_pipeline

    pipeline = load_pipeline(path, **({"work": work} if work else {}))
    for page in run_pipeline(pipeline, force, retry_failed):
        print(f"report: {page}")


def _caption(options: argparse.Namespace) -> None:
    from capmix import jobs
    from capmix.caption.settings import CaptionSettings

    settings = settings_of(CaptionSettings, options)
    jobs.caption(_work(options), options.source, settings)


def _score(options: argparse.Namespace) -> None:
    from capmix import jobs
    from capmix.score.settings import ScoreSettings

    options.sources = options.sources.split(",")
    jobs.score(_work(options), settings_of(ScoreSettings, options))


def _import(options: argparse.Namespace) -> None:
    from capmix import jobs

    how = options.max_failures, options.force
    work = (
        jobs.open_work(options.pool, options.work, *how)
        if options.pool
        else jobs.reopen_work(options.work, *how)
    )
    if options.kind == "captions":
        found = jobs.import_captions(
            work, options.files, options.source, options.uid_column, options.text_column
        )
    else:
        found = jobs.import_scores(
            work,
            options.files,
            options.source,
            options.scorer,
            options.uid_column,
            options.column,
        )
    print("\n".join(found.lines()))


def _exact_decode(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--exact-decode",
        action="store_true",
        help="decode every pixel of JPEGs that are much larger than the model's input",
    )


def _annotate(options: argparse.Namespace) -> None:
    from dataclasses import fields

    from capmix import jobs
    from capmix.annotate.annotate import AnnotateSettings
    from capmix.score.settings import ScoreSettings

    names = [field.name for field in fields(AnnotateSettings)]
    settings = AnnotateSettings(**{name: getattr(options, name) for name in names})
    scoring = ScoreSettings(model=options.model)
    work = _work(options)
    jobs.annotate(work, options.method, options.name, settings, scoring, options.embeddings)


def _mix(options: argparse.Namespace) -> None:
    from capmix import jobs
    from capmix.mix.mix import MixSettings
    from capmix.mix.recipe import combinations, load_recipe

    given = _pairs("--set", options.set)
    given |= {"fraction": options.fraction} if options.fraction is not None else {}
    given |= {"synthetic": options.synthetic} if options.synthetic is not None else {}
    sweep = {name: [_number(one) for one in text.split(",")] for name, text in given.items()}
    settings = MixSettings(
        options.seed, _pairs("--uids", options.uids), options.npy, options.workers
    )
    changes = {"where": options.where, "distinct": options.distinct}
    changes = {name: value for name, value in changes.items() if value is not None}
    work, runs = _work(options), combinations(sweep)
    names = [load_recipe(options.recipe, parameters).name for parameters in runs]
    if len(runs) > 1 and (options.out or len(set(names)) < len(names)):
        raise UserError(
            f"several subsets are asked for, but all would be called {options.out or names[0]}; "
            "mix them one by one with --out"
        )
    for parameters in runs:
        summary = jobs.mix(
            work, options.recipe, parameters, options.scorer, settings, options.out, changes
        )
        print("\n".join(summary.lines()))
        if options.explain:
            print(summary.sql)


def _pairs(option: str, given: Sequence[str]) -> dict[str, str]:
    pairs = [text.partition("=") for text in given]
    for name, sign, value in pairs:
        if not name.isidentifier() or not sign or not value:
            raise UserError(f"{option} {name}{sign}{value}: expected NAME=VALUE")
    return {name: value for name, _, value in pairs}


def _number(text: str) -> float | str:
    """The number, or the text itself where it is none: the recipe's own check then names it."""
    try:
        return float(text)
    except ValueError:
        return text


class _ListRecipes(argparse.Action):
    """Like --help: prints and ends, whatever else is missing."""

    def __init__(self, option_strings: list[str], dest: str, help: str):
        super().__init__(option_strings, dest, nargs=0, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        _print_recipes()
        parser.exit()


def _print_recipes() -> None:
    from capmix.mix.recipe import load_recipe, shipped_recipes

    for name in shipped_recipes():
        recipe = load_recipe(name)
        print(f"{name}\n    {' '.join(recipe.about.split())}")
        if recipe.reference:
            print(f"    source: {recipe.reference}")


def _export(options: argparse.Namespace) -> None:
    from capmix import jobs
    from capmix.engine.local import cores

    if options.engine == "local" and options.workers is None:
        options.workers = cores()
    jobs.export(
        _work(options), options.subset, options.out, options.samples_per_shard, options.format
    )


def _doctor(options: argparse.Namespace) -> None:
    from capmix.inspect.doctor import lines

    print("\n".join(lines()))

"""Evaluate a model on many tasks, and keep the results of the very same model.

`eval_results.jsonl` has a line for each task in the form of DataComp's evaluate.py, which its
aggregate_scores.py reads: key, dataset, metrics with main_metric. Beside them each line says which
weights, precision and data it is of; a line of others is never taken for done.
"""

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from capmix.errors import UserError
from capmix.evaluate.evalset import EvalSet, embedded_evalsets
from capmix.evaluate.evaluate import evaluate_set, usual_metric
from capmix.evaluate.other_sets import open_evalset
from capmix.evaluate.tasks import DATACOMP, Task, aggregates, chosen_tasks
from capmix.evaluate.vectors import Vectors
from capmix.models import device_and_dtype
from capmix.pool import EMBEDDED, embedded_folder

RESULTS, SUMMARY = "eval_results.jsonl", "eval_summary.json"
RUN_ABOUT = "run.json"
SIGLIP_BIAS = -10.0  # what open_clip's trainer starts from; the checkpoint's own value replaces it


@dataclass(frozen=True)
class Evaluated:
    """Lines of results in the order asked for, group means, and what could not be evaluated."""

    lines: list[dict[str, Any]]
    aggregates: dict[str, Any]
    missing: list[str]
    broken: list[str]

    def text(self) -> list[str]:
        """A line for each task and each mean over tasks."""
        width = max([len(line["dataset"]) for line in self.lines] or [0])
        lines = [
            f"{line['dataset']:<{width}}  {line['metric'] or '':<22} {_shown(line)}"
            for line in self.lines
        ]
        means = {name: value for name, value in self.aggregates.items() if value is not None}
        return lines + [f"{name}: {value:.4f}" for name, value in means.items()]


def evaluate(
    model: str,
    tasks: str | None,
    evalsets: str,
    out: str | None = None,
    device: str = "auto",
    dtype: str = "float32",
) -> Evaluated:
    """Evaluate a run's directory, or an open_clip model as `capmix score` names it.

    `tasks` (see chosen_tasks) lie below `evalsets`, or where their path says; with `evalsets`
    `embedded` they are by default the embedded test sets, else DataComp's 40. Results go to `out`,
    of a run by default to its own directory. Tasks whose sets are not there are named, and so are
    broken sets; the others are evaluated all the same.
    """
    from capmix.score.open_clip import OpenClipScorer

    folder = _results_folder(model, out)
    root = str(embedded_folder() / "tuxpaint") if evalsets == EMBEDDED else evalsets
    names = ",".join(Path(path).name for path in embedded_evalsets())
    usual = names if evalsets == EMBEDDED else DATACOMP
    found, missing, broken = _sets(chosen_tasks(tasks or usual), root)
    if not found:
        return Evaluated([], {}, missing, broken)
    name, bias = _loadable(model)
    place, torch_dtype = device_and_dtype(device, dtype)
    scorer = OpenClipScorer(name, "eval", place, torch_dtype, exact_decode=True, logit_bias=bias)
    of_model = {"weights": scorer.weights_digest(), "precision": dtype}
    vectors = Vectors(scorer)
    lines: list[dict[str, Any]] = []
    known = _known(folder, of_model)
    for task, evalset in found:
        key = task if isinstance(task, str) else task.key
        line = known.get(key)
        if line is None or line["data"] != evalset.digest:
            try:
                line = _line(vectors, task, evalset) | of_model
            except UserError as error:
                broken.append(str(error))
                known.pop(key, None)
                continue
        lines.append(line)
        known[key] = line
        _write(folder / RESULTS, "".join(json.dumps(one) + "\n" for one in known.values()))
        print(f"eval {line['dataset']}: {_shown(line)}", file=sys.stderr)
    counted = [line for line in known.values() if line["metrics"]["main_metric"] is not None]
    means = aggregates({line["dataset"]: line["metrics"]["main_metric"] for line in counted})
    _write(folder / SUMMARY, json.dumps(of_model | means, indent=1))
    return Evaluated(lines, means, missing, broken)


def _sets(
    tasks: Sequence[Task | str], evalsets: str
) -> tuple[list[tuple[Task | str, EvalSet]], list[str], list[str]]:
    """Tasks with their sets, the keys of those that are not there, and what is broken."""
    found: list[tuple[Task | str, EvalSet]] = []
    missing, broken = [], []
    for task in tasks:
        names = [task] if isinstance(task, str) else task.folders
        paths = [Path(evalsets) / name for name in names]
        path = next((path for path in paths if path.exists()), None)
        if path is None and isinstance(task, Task):
            missing.append(task.key)
            continue
        if path is None:
            broken.append(f"{task}: no task of DataComp, and no set at {paths[0]}")
            continue
        try:
            found.append((task, open_evalset(str(path))))
        except UserError as error:
            broken.append(str(error))
    return found, missing, broken


def _line(vectors: Vectors, task: Task | str, evalset: EvalSet) -> dict[str, Any]:
    if isinstance(task, Task):
        key, name, metric = task.key, task.name, task.main_metric
        metrics = evaluate_set(vectors, evalset, task.key)
    else:
        key, name, metric = task, evalset.name, usual_metric(evalset)
        metrics = evaluate_set(vectors, evalset)
    metrics["main_metric"] = None if metric is None else metrics.get(metric)
    about = {"metric": metric, "data": evalset.digest}
    return {"key": key, "dataset": name, "metrics": metrics} | about


def _shown(line: dict[str, Any]) -> str:
    value = line["metrics"]["main_metric"]
    return "no main metric" if value is None else f"{value:.4f}"


def _loadable(model: str) -> tuple[str, float | None]:
    """The model as open_clip loads it, and the start of its logit bias if it has one."""
    if not (Path(model) / RUN_ABOUT).exists():
        return model, None
    from capmix.train.train import CHECKPOINT, read_run, register_model

    about, checkpoint = read_run(model), Path(model).resolve() / CHECKPOINT
    if not checkpoint.exists():
        raise UserError(f"{model}: no checkpoint yet; `capmix train` writes {CHECKPOINT}")
    if about["config"] is not None:
        register_model(Path(model).resolve() / f"{about['model']}.json")
    bias = SIGLIP_BIAS if about["settings"]["loss"] == "siglip" else None
    return f"{about['model']}/{checkpoint}", bias


def _results_folder(model: str, out: str | None) -> Path:
    is_run = (Path(model) / RUN_ABOUT).exists()
    if out is None and not is_run:
        raise UserError(f"eval {model}: no directory of a run; say with --out where results go")
    folder = Path(out or model)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _known(folder: Path, of_model: dict[str, str]) -> dict[str, dict[str, Any]]:
    """Lines by task of the very same weights at the same precision; others are forgotten."""
    try:
        lines = [json.loads(line) for line in (folder / RESULTS).read_text("utf-8").splitlines()]
        kept = {line["key"]: line for line in lines if of_model.items() <= line.items()}
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, AttributeError) as error:
        raise UserError(f"{folder / RESULTS}: no results of ours ({error}); remove it") from error
    if len(kept) < len(lines):
        what = "other weights or another precision"
        print(f"eval: {len(lines) - len(kept)} results are of {what}, left out", file=sys.stderr)
    return kept


def _write(path: Path, text: str) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text, "utf-8")
    os.replace(temporary, path)

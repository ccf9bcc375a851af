"""Evaluate a model on many tasks. Loads it once and keeps finished results (results_file.py)."""

import contextlib
import json
import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pa_csv

from capmix.errors import UserError
from capmix.evaluation.classes import class_table, group_accuracy, with_groups
from capmix.evaluation.embedded import embedded_evalsets, embedded_sets_folder
from capmix.evaluation.evalset import EvalSet
from capmix.evaluation.evaluate import evaluate_set, has_classes, usual_metric
from capmix.evaluation.other_sets import open_evalset
from capmix.evaluation.results_file import ResultsFile
from capmix.evaluation.tables import MAIN as MAIN
from capmix.evaluation.tables import lines_table
from capmix.evaluation.tasks import DATACOMP, TASKS, EvalTask, aggregates, chosen_tasks
from capmix.evaluation.vectors import VectorCache
from capmix.models.registry import require
from capmix.models.trained_run import ABOUT, RUN, run_directory
from capmix.pool import EMBEDDED
from capmix.score.settings import ScoreSettings
from capmix.settings.base import make
from capmix.settings.counted import counted
from capmix.settings.printable import printable
from capmix.settings.tables import table_html, table_lines
from capmix.storage.store import Store

log = logging.getLogger(__name__)

RESULTS, OTHERS, SUMMARY = "eval_results", "eval_other_sets", "eval_summary.json"
CLASSES = "eval_classes"
MEAN = "mean of all sets"  # column name in the tables of a grid


@dataclass(frozen=True)
class Evaluated:
    """Results of an evaluation.

    `lines` are in the requested order. `aggregates` are means over DataComp's groups of tasks,
    including earlier results of the model. `missing` are tasks without data, `broken` error
    messages of sets that cannot be evaluated.
    """

    lines: list[dict[str, Any]]
    aggregates: dict[str, Any]
    missing: list[str]
    broken: list[str]

    def text(self) -> list[str]:
        """Return a line for each task, each group of its classes and each mean over tasks."""
        lines = table_lines([], _rows(self.lines), "lll")
        means = {name: value for name, value in self.aggregates.items() if value is not None}
        return lines + [f"{name}: {value:.4f}" for name, value in means.items()]

    def to_table(self) -> pa.Table:
        """Return a row per task: task, dataset, metric, value, precision, and all its metrics.

        Metrics are fractions.
        """
        return lines_table(self.lines)

    def to_class_table(self) -> pa.Table:
        """Return a row per task and class: task, class, name, group, images, acc1, acc5.

        Accuracies are fractions; see classes.class_table. Tasks without classes, and results of
        capmix 0.1 that were not evaluated again, have no rows.
        """
        return class_table(self.lines)

    def class_lines(self) -> list[str]:
        """Return a table with a line per task and class."""
        rows = [
            [row["task"], row["name"], row["group"] or "", f"{row['images']:,}"]
            + [_number(row["acc1"]), _number(row["acc5"])]
            for row in self.to_class_table().to_pylist()
        ]
        return table_lines(["task", "class", "group", "images", "acc1", "acc5"], rows, "lll")

    def __repr__(self) -> str:
        lines = [*self.text(), *self.broken]
        if self.missing:
            lines.append(
                f"{counted(len(self.missing), 'task')} without data, for example {self.missing[0]}"
            )
        return "\n".join(printable(line) for line in lines)

    def _repr_html_(self) -> str:
        rows = _rows(self.lines)
        means = {name: value for name, value in self.aggregates.items() if value is not None}
        rows += [[name, "", f"{value:.4f}"] for name, value in means.items()]
        rows += [[name, "", "no data"] for name in self.missing]
        rows += [[why, "", "broken"] for why in self.broken]
        return table_html(["task", "metric", "value"], rows, "ll")


def evaluate(
    model: str,
    tasks: str | None,
    evalsets: str,
    out: str | None = None,
    device: str = "auto",
    dtype: str = "float32",
    classes: bool = False,
) -> Evaluated:
    """Evaluate the directory of a training run, or an open_clip model named as in `capmix score`.

    `tasks` (see chosen_tasks) are looked up in the directory `evalsets`, unless they are absolute
    paths. The default is DataComp's 40 tasks, or the embedded test sets if `evalsets` is
    `embedded`. With `classes`, and for sets with groups of classes, earlier results without counts
    per class are computed again. Results are written to results_folder(model, out). Missing and
    broken sets are reported in the result; the others are evaluated.
    """
    require(["torch", "open_clip"], "eval", "open_clip")
    from capmix.score.backends.open_clip import OpenClipScorer

    folder = results_folder(model, out)
    found, missing, broken = open_sets(tasks, evalsets)
    if not found:
        return Evaluated([], {}, missing, broken)
    directory = _run_directory(model)
    name = model if directory is None else f"{RUN}{directory}"
    how = {"device": device, "dtype": dtype, "exact_decode": True}
    scorer = OpenClipScorer(make(ScoreSettings, {"model": name, **how}), unfinished=True)
    of_model = scorer.digest(), dtype
    folder.mkdir(parents=True, exist_ok=True)
    known = ResultsFile.of(folder, RESULTS, *of_model)
    others = ResultsFile.of(folder, OTHERS, *of_model)
    vectors = VectorCache(scorer)
    lines = []
    with _without_tf32():
        for task, evalset in found:
            file = known if isinstance(task, EvalTask) else others
            key = task.key if isinstance(task, EvalTask) else task
            earlier = _earlier(file, key, evalset, classes)
            try:
                line = with_groups(earlier or _line(vectors, task, evalset), evalset.groups)
            except UserError as error:
                broken.append(str(error))
                file.drop(key)
                continue
            if line != earlier:
                line = file.put(line)
            lines.append(line)
            log.info("eval %s: %s", line["dataset"], _shown(line))
    means = means_of(list(known.lines.values()))
    summary = {"fingerprint": of_model[0], "precision": dtype} | means
    _write_classes(folder, known, others)
    (folder / SUMMARY).write_text(json.dumps(summary, indent=1), "utf-8")
    return Evaluated(lines, means, missing, broken)


def fetch_command(missing: Sequence[str], evalsets: str) -> str:
    """Return the command that downloads the sets of these tasks."""
    tasks = DATACOMP if len(missing) == len(TASKS) else ",".join(missing)
    return f"capmix evalsets fetch --out {evalsets} --tasks {tasks}"


def means_of(lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return means over DataComp's groups of tasks; see aggregates."""
    main = {line["dataset"]: line["metrics"]["main_metric"] for line in lines}
    return aggregates({name: value for name, value in main.items() if value is not None})


def open_sets(
    tasks: str | None, evalsets: str
) -> tuple[list[tuple[EvalTask | str, EvalSet]], list[str], list[str]]:
    """Open the sets of the tasks (see evaluate).

    Returns (task, set) pairs, the keys of tasks without data, and errors of broken sets.
    """
    if evalsets == EMBEDDED:
        root, names = embedded_sets_folder(), [Path(path).name for path in embedded_evalsets()]
    else:
        root, names = Path(evalsets), [DATACOMP]
    chosen = chosen_tasks(tasks or ",".join(names))
    found: list[tuple[EvalTask | str, EvalSet]] = []
    missing, broken = [], []
    for task in chosen:
        paths = _places(root, task)
        path = next((path for path in paths if path.exists()), None)
        if path is None and isinstance(task, EvalTask):
            missing.append(task.key)
        elif path is None:
            broken.append(f"{task}: not a DataComp task, and no set at {paths[0]}")
        else:
            try:
                found.append((task, open_evalset(str(path))))
            except UserError as error:
                broken.append(str(error))
    return found, missing, broken


def _places(root: Path, task: EvalTask | str) -> list[Path]:
    return [root / name for name in ([task] if isinstance(task, str) else task.folders)]


def _earlier(file: ResultsFile, key: str, evalset: EvalSet, classes: bool) -> dict[str, Any] | None:
    """Return the earlier result of a task, unless it lacks counts per class that are needed."""
    line = file.done(key, evalset.digest)
    needed = has_classes(evalset, key) and (classes or bool(evalset.groups))
    return None if line is not None and needed and "classes" not in line else line


def _line(vectors: VectorCache, task: EvalTask | str, evalset: EvalSet) -> dict[str, Any]:
    if isinstance(task, EvalTask):
        key, name, metric = task.key, task.name, task.main_metric
        found = evaluate_set(vectors, evalset, task.key)
    else:
        key, name, metric = task, task, usual_metric(evalset)
        found = evaluate_set(vectors, evalset)
    metrics = found.metrics
    metrics["main_metric"] = None if metric is None else metrics.get(metric)
    about = {"metric": metric, "data": evalset.digest}
    counts = {"classes": found.classes} if found.classes else {}
    return {"key": key, "dataset": name, "metrics": metrics} | about | counts


def _write_classes(folder: Path, *files: ResultsFile) -> None:
    """Write the results per class of all tasks of these files; remove earlier ones if none has."""
    name = f"{files[0].path.stem.replace(RESULTS, CLASSES)}.csv"
    table = class_table(line for file in files for line in file.lines.values())
    store = Store(str(folder))
    if not table.num_rows:
        store.remove(name)
        return
    with store.writing(name) as stream:
        pa_csv.write_csv(table, stream)


def _rows(lines: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Return dataset, metric and value of each task, and below it of each group of its classes."""
    rows = []
    for line in lines:
        rows.append([line["dataset"], line["metric"] or "", _shown(line)])
        for metric in group_accuracy(line["metrics"]).values():
            rows.append([line["dataset"], metric, _number(line["metrics"][metric])])
    return rows


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _shown(line: dict[str, Any]) -> str:
    value = line["metrics"]["main_metric"]
    return "no main metric" if value is None else f"{value:.4f}"


def _run_directory(model: str) -> str | None:
    """Return the directory of a training run, given with or without `run:`; None for others."""
    named = run_directory(model)
    return model if named is None and (Path(model) / ABOUT).exists() else named


def results_folder(model: str, out: str | None) -> Path:
    """Return the folder for results of a model.

    `out` if given, otherwise the run's directory, otherwise `evaluations/<model>`.
    """
    directory = _run_directory(model)
    if out is None and directory is None:
        name = re.sub(r"[^A-Za-z0-9.]+", "-", model).strip("-.")
        return Path("evaluations") / name
    return Path(out or directory or model)


@contextlib.contextmanager
def _without_tf32() -> Iterator[None]:
    """Disable TF32, so that GPUs compute float32 at full precision."""
    import torch

    backends = torch.backends
    before = backends.cuda.matmul.allow_tf32, backends.cudnn.allow_tf32
    backends.cuda.matmul.allow_tf32 = backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        backends.cuda.matmul.allow_tf32, backends.cudnn.allow_tf32 = before

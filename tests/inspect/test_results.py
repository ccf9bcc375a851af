"""Results as tables with one row per task, or per run and probe."""

import json
from pathlib import Path

import pytest
from samples import write_pool

import capmix
from capmix.errors import UserError
from capmix.evaluation.results import Evaluated
from capmix.pipeline.grid import Cell, write_tables
from capmix.storage.marker import Counts, Marker

NO_RECALLS = dict.fromkeys(
    ("pairs/text_retrieval_recall@1", "pairs/image_retrieval_recall@1", "pairs")
)


def line(key: str, fingerprint: str, **metrics: float | None) -> str:
    about = {"key": key, "dataset": key.upper(), "metric": "acc1", "data": "d"}
    about |= {"fingerprint": fingerprint, "precision": "float32"}
    return json.dumps(about | {"metrics": metrics}) + "\n"


def test_a_run_has_a_row_per_task_of_its_last_evaluation(tmp_path: Path) -> None:
    run = capmix.Run(str(tmp_path))  # type: ignore[arg-type]
    with pytest.raises(UserError, match="no results; run `capmix eval .*` first"):
        run.results()
    (tmp_path / "eval_results.jsonl").write_text(
        line("a", "now", acc1=0.5, acc5=0.75, main_metric=0.5)
        + line("b", "now", recall=0.25, main_metric=None)
    )
    (tmp_path / "eval_other_sets.jsonl").write_text(line("c", "old", acc1=0.1, main_metric=0.1))
    (tmp_path / "eval_summary.json").write_text('{"fingerprint": "now", "precision": "float32"}')
    assert run.results().to_pylist() == [
        {"task": "a", "dataset": "A", "metric": "acc1", "value": 0.5, "precision": "float32",
         "acc1": 0.5, "acc5": 0.75, "recall": None},
        {"task": "b", "dataset": "B", "metric": "acc1", "value": None, "precision": "float32",
         "acc1": None, "acc5": None, "recall": 0.25},
    ]  # fmt: skip
    (tmp_path / "eval_results.jsonl").write_text("{")
    with pytest.raises(UserError, match="is damaged"):
        run.results()


def test_a_work_directory_has_a_row_per_run_and_probe(tmp_path: Path) -> None:
    ws = capmix.open(write_pool(tmp_path / "pool", 1, 4), work=tmp_path / "work")
    assert ws.results().num_rows == 0
    ws.mix("raw")
    cells = [
        Cell("p", "raw", 4, seed, {("set", "acc1"): seed / 4, ("set", "main_metric"): seed / 4})
        for seed in (1, 2)
    ]
    write_tables(cells, ws.store.location, {})
    now = ws.store.fingerprint("subsets/raw")
    write_probe(ws, 0, now)
    write_probe(ws, 1, "of an earlier subset")
    assert ws.results().to_pylist() == [
        {"of": "run", "subset": "raw", "seed": 1, "samples": 4, "set/acc1": 0.25, "set": 0.25}
        | NO_RECALLS,
        {"of": "run", "subset": "raw", "seed": 2, "samples": 4, "set/acc1": 0.5, "set": 0.5}
        | NO_RECALLS,
        {"of": "probe", "subset": "raw", "seed": 0, "samples": 4, "set/acc1": 1.0, "set": 1.0,
         "pairs/text_retrieval_recall@1": 0.5, "pairs/image_retrieval_recall@1": 0.25,
         "pairs": 0.375},
    ]  # fmt: skip


def write_probe(ws: capmix.Workspace, seed: int, subset: str) -> None:
    probe = f"probes/raw/seed{seed}"
    ws.store.write_marker(probe, Marker({"subset": subset}, {"seed": seed}, 4, Counts(4)))
    recalls = {"text_retrieval_recall@1": 0.5, "image_retrieval_recall@1": 0.25}
    found = {"metrics": {"set": {"acc1": 1.0}, "pairs": recalls}}
    inputs = {"checkpoint": ws.store.fingerprint(probe)}
    ws.store.write_marker(f"probe_results/raw/seed{seed}", Marker(inputs, {}, 4, Counts(4), found))


def test_an_evaluation_shows_itself() -> None:
    lines = [json.loads(line("a", "now", acc1=0.5, main_metric=0.5))]
    found = Evaluated(lines, {"Average": 0.5, "VTAB": None}, ["b", "c"], ["<d>: broken"])
    assert repr(found).splitlines() == [
        "A  acc1  0.5000",
        "Average: 0.5000",
        "<d>: broken",
        "2 tasks without data, for example b",
    ]
    assert "&lt;d&gt;: broken" in found._repr_html_()
    assert found.to_table()["acc1"].to_pylist() == [0.5]

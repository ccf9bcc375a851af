import csv
import json
from dataclasses import asdict
from importlib import resources
from pathlib import Path

import pytest

from capmix.evaluation.tasks import GROUPS
from capmix.report.published import GROUPS as COLUMNS
from capmix.report.published import published, scale_of_runs
from capmix.storage.store import Store
from capmix.training.scales import SCALES


def test_rows_are_those_of_the_scale_and_in_percent() -> None:
    rows = {row.name: row for row in published("medium")}
    assert len(rows) == 7
    assert rows["No filtering"].groups == pytest.approx(
        {"ImageNet": 17.6, "ImageNet dist. shifts": 15.2, "VTAB": 25.9, "Retrieval": 21.9}
        | {"Average": 25.8}
    )
    assert [len(published(one)) for one in ("small", "large", "xlarge")] == [7, 7, 4]
    assert published("tiny") == published("debug") == published(None) == []


def test_what_no_source_confirms_is_left_out() -> None:
    """For two small baselines the released checkpoints' results differ from the paper's."""
    rows = {row.name: row.groups for row in published("small")}
    assert rows["No filtering"] == {"ImageNet": 2.5}
    assert rows["Image-based (ImageNet-1k)"] == {"ImageNet": 4.3}
    text = (resources.files("capmix.report") / "published.csv").read_text("utf-8")
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert all(row["checkpoint"] for row in csv.DictReader(lines))
    assert set(COLUMNS.values()) == {*GROUPS, "Average"}


def run_of(folder: Path, run: str, **changes: object) -> None:
    about = {"scale": asdict(SCALES["small"]) | changes}
    (folder / "runs" / run).mkdir(parents=True)
    (folder / "runs" / run / "run.json").write_text(json.dumps(about))


def test_the_scale_of_runs_is_what_all_were_trained_at(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    assert scale_of_runs(store, ["raw"]) is None
    run_of(tmp_path, "raw-seed0")
    run_of(tmp_path, "raw-seed1")
    run_of(tmp_path, "other-seed0", samples=1000)
    run_of(tmp_path, "wide-seed0", name=["small"])
    assert scale_of_runs(store, ["raw"]) == "small"
    assert scale_of_runs(store, ["other"]) is None
    assert scale_of_runs(store, ["raw", "other"]) is None
    assert scale_of_runs(store, ["wide"]) is None
    (tmp_path / "runs/raw-seed1/run.json").write_text("[")
    assert scale_of_runs(store, ["raw"]) is None

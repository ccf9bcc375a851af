"""Results per class and per group of classes."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.csv as pa_csv
import pytest
from evalsets import CLASSES, write_classification, write_retrieval
from hypothesis import given
from hypothesis import strategies as st
from tiny_clip import CLIP, open_clip_folder

import capmix
from capmix.errors import UserError
from capmix.evaluation import results
from capmix.evaluation.classes import class_table, count_classes, is_sound, read_groups, with_groups
from capmix.evaluation.metrics import Classification
from capmix.evaluation.results import Evaluated, evaluate

LABELS = [0, 0, 0, 0, 1, 1, 1, 2, 2, 3, 4]  # no image of the last class
GROUPS = [("cat", "common"), ("dog", "common"), ("tree", "rare"), ("house", "rare")]


def predictions(seed: int, rows: int, classes: int) -> Classification:
    random = np.random.default_rng(seed)
    labels = random.integers(max(classes - 2, 1), size=rows)  # two classes never occur
    top = np.stack([random.permutation(classes)[:5] for _ in range(rows)])
    return Classification(top, top[:, 0], labels, classes)


def a_line(result: Classification) -> dict[str, Any]:
    names = [f"class {n}" for n in range(result.classes)]
    counts = count_classes(result, names)
    return {"key": "t", "metrics": dict(result.metrics()), "classes": counts}


@given(st.integers(0, 10_000), st.integers(1, 60), st.sampled_from([2, 4, 5, 9]))
def test_classes_are_a_plain_recount_and_add_up_to_the_accuracy(
    seed: int, rows: int, classes: int
) -> None:
    result = predictions(seed, rows, classes)
    line = a_line(result)
    found = class_table([line]).to_pylist()
    assert [row["class"] for row in found] == list(range(classes))
    for row in found:
        own = [i for i in range(rows) if result.labels[i] == row["class"]]
        first = sum(result.top[i, 0] == row["class"] for i in own)
        five = sum(row["class"] in result.top[i] for i in own)
        assert row["images"] == len(own)
        assert row["acc1"] == (first / len(own) if own else None)
        assert row["acc5"] == (five / len(own) if own and classes >= 5 else None)
    for name in ("acc1", "acc5") if classes >= 5 else ("acc1",):
        hits = sum(round(row[name] * row["images"]) for row in found if row["images"])
        assert hits / rows == line["metrics"][name]
    assert is_sound(json.loads(json.dumps(line["classes"])))


@given(st.integers(0, 10_000))
def test_groups_are_accuracies_over_the_images_of_their_classes(seed: int) -> None:
    result = predictions(seed, 50, 8)
    groups = ["a", "b", "a", "", "", "b", "never", "never"]
    metrics = with_groups(a_line(result), groups)["metrics"]
    of_image = np.array(groups)[result.labels]
    for group in ("a", "b"):
        here = of_image == group
        assert metrics[f"count_group:{group}"] == here.sum()
        assert metrics[f"acc1_group:{group}"] == result.hits1[here].mean()
        assert metrics[f"acc5_group:{group}"] == result.hits5[here].mean()
    assert not any("never" in name for name in metrics)  # no images
    without = with_groups(with_groups(a_line(result), groups), [])
    assert without == with_groups(a_line(result), [])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return open_clip_folder(tmp_path_factory.mktemp("clip") / "model", CLIP)


def write_groups(folder: Path, rows: list[tuple[str, str]] = GROUPS) -> None:
    with (folder / "groups.csv").open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([("class", "group"), *rows])


@pytest.fixture
def evaluated(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The sets that are evaluated, not known from before."""
    names: list[str] = []
    ours = results.evaluate_set

    def noted(vectors: Any, evalset: Any, task: str = "") -> Any:
        names.append(evalset.name)
        return ours(vectors, evalset, task)

    monkeypatch.setattr(results, "evaluate_set", noted)
    return names


def test_an_evaluation_writes_its_classes_and_keeps_them(
    model: str, tmp_path: Path, evaluated: list[str]
) -> None:
    write_classification(tmp_path / "sets/wds_cifar10_test", LABELS)
    write_classification(tmp_path / "sets/own", LABELS[:4], CLASSES[:3])
    write_retrieval(tmp_path / "sets/pairs", [["a"], ["b"]])
    out = tmp_path / "out"
    where = str(tmp_path / "sets"), str(out), "cpu"
    found = evaluate(model, "cifar10,own,pairs", *where)
    table = found.to_class_table()
    rows = table.to_pylist()
    assert [row["name"] for row in rows if row["task"] == "cifar10"] == CLASSES
    assert [row["images"] for row in rows] == [4, 3, 2, 1, 1, 0, 4, 0, 0]
    assert rows[5]["acc1"] is None
    assert rows[6]["acc5"] is None  # three classes
    hits = sum(row["acc1"] * row["images"] for row in rows[:5])
    assert hits / len(LABELS) == pytest.approx(found.lines[0]["metrics"]["acc1"])
    written = pa_csv.read_csv(out / "eval_classes.csv").to_pylist()
    assert [row["images"] for row in written] == [row["images"] for row in rows]
    assert [row["acc1"] for row in written] == [row["acc1"] for row in rows]
    assert capmix.Run(out).class_results() == table
    assert evaluate(model, "cifar10,own,pairs", *where, classes=True).to_class_table() == table
    assert len(evaluated) == 3
    assert len(evaluate(model, "pairs", *where).to_class_table()) == 0
    assert pa_csv.read_csv(out / "eval_classes.csv").to_pylist() == written  # of all tasks


def test_results_of_earlier_versions_are_recomputed_only_where_classes_are_wanted(
    model: str, tmp_path: Path, evaluated: list[str]
) -> None:
    root = write_classification(tmp_path / "sets/wds_cifar10_test", LABELS)
    out = tmp_path / "out"
    where = str(tmp_path / "sets"), str(out), "cpu"
    first = evaluate(model, "cifar10", *where)
    file = out / "eval_results.jsonl"
    line = json.loads(file.read_text())
    del line["classes"]
    before = json.dumps(line) + "\n"
    file.write_text(before)
    found = evaluate(model, "cifar10", *where)
    assert len(evaluated) == 1
    assert len(found.to_class_table()) == 0
    assert not (out / "eval_classes.csv").exists()
    assert evaluate(model, "cifar10", *where, classes=True) == first
    assert len(evaluated) == 2
    file.write_text(before)
    write_groups(root)
    assert "acc1_group:rare" in evaluate(model, "cifar10", *where).lines[0]["metrics"]
    assert len(evaluated) == 3


def test_groups_change_without_another_evaluation(
    model: str, tmp_path: Path, evaluated: list[str]
) -> None:
    root = write_classification(tmp_path / "sets/wds_cifar10_test", LABELS)
    where = str(tmp_path / "sets"), str(tmp_path / "out"), "cpu"
    plain = evaluate(model, "cifar10", *where)
    write_groups(root)
    found = evaluate(model, "cifar10", *where)
    metrics = found.lines[0]["metrics"]
    assert (metrics["count_group:common"], metrics["count_group:rare"]) == (7, 1)
    assert [row["group"] for row in found.to_class_table().to_pylist()] == [
        "common", "common", None, None, "rare", "rare",
    ]  # fmt: skip
    shown = [line.split() for line in found.text()]
    assert ["CIFAR-10", "acc1_group:common", f"{metrics['acc1_group:common']:.4f}"] in shown
    assert ",rare," in (tmp_path / "out/eval_classes.csv").read_text().replace('"', "")
    (root / "groups.csv").unlink()
    assert evaluate(model, "cifar10", *where) == plain
    assert len(evaluated) == 1


def test_class_folders_have_groups_too(tmp_path: Path) -> None:
    from samples import image_bytes

    from capmix.evaluation.other_sets import open_evalset

    for name in ("red_car", "tree"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.jpg").write_bytes(image_bytes(0))
    write_groups(tmp_path, [("red car", "common")])
    assert open_evalset(str(tmp_path)).groups == ["common", ""]


def test_classes_are_shown_with_their_groups() -> None:
    top = np.array([[0], [1], [1]])
    result = Classification(top, top[:, 0], np.array([0, 1, 0]), 2)
    line = with_groups(a_line(result), ["common", ""])
    shown = Evaluated([line], {}, [], []).class_lines()
    assert [one.split() for one in shown] == [
        ["task", "class", "group", "images", "acc1", "acc5"],
        ["t", "class", "0", "common", "2", "0.5000"],
        ["t", "class", "1", "1", "1.0000"],
    ]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("class,groups\ncat,a\n", "expected the columns class and group, found class, groups"),
        ("", "expected the columns class and group, found none"),
        (
            "class,group\ncat,a\n\nlion,b\n",
            r"groups.csv, line 4: class 'lion' is not in classnames",
        ),
        ("class,group\ncat,a\ncat,b\n", "class 'cat' is in the groups a and b; keep one"),
        ("class,group\ncat,a\x1bb\n", "expected a group of at most 64 printable characters"),
        ("class,group\ncat," + 65 * "a", "expected a group of at most 64 printable characters"),
        (b"class,group\ncat,\xff\n", "groups.csv: 'utf-8' codec"),
    ],
)
def test_wrong_groups_are_one_line(tmp_path: Path, content: str | bytes, why: str) -> None:
    data = content.encode() if isinstance(content, str) else content
    (tmp_path / "groups.csv").write_bytes(data)
    with pytest.raises(UserError, match=why):
        read_groups(tmp_path, CLASSES)


def test_groups_of_a_spreadsheet_are_read(tmp_path: Path) -> None:
    text = "\ufeffclass,group,note\r\n cat , common,x\r\ndog\r\nred car,rare\r\n,,\r\n"
    (tmp_path / "groups.csv").write_text(text, encoding="utf-8", newline="")
    assert read_groups(tmp_path, CLASSES) == ["common", "", "", "rare", "", ""]


@pytest.mark.parametrize(
    "change",
    [
        {"images": [1]}, {"hits1": None}, {"name": [1, 2]}, {"hits5": [-1, 0]},
        {"images": [0.5, 1]}, {"more": []},
    ],
)  # fmt: skip
def test_damaged_counts_are_an_error(tmp_path: Path, change: dict[str, Any]) -> None:
    counts = {"name": ["a", "b"], "group": ["", ""], "images": [1, 2], "hits1": [0, 1], "hits5": []}
    line = {"key": "k", "dataset": "d", "metrics": {"main_metric": 0.5}, "metric": "acc1"}
    line |= {"data": "d", "fingerprint": "f", "precision": "float32", "classes": counts | change}
    (tmp_path / "eval_results.jsonl").write_text(json.dumps(line) + "\n")
    with pytest.raises(UserError, match="is damaged"):
        capmix.Run(tmp_path).results()

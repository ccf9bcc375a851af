import statistics

import pytest

from capmix.errors import UserError
from capmix.evaluation.tasks import GROUPS, TASKS, aggregates, chosen_tasks


def test_forty_tasks_of_which_38_count() -> None:
    assert len(TASKS) == 40
    assert [task.name for task in TASKS if task.main_metric is None] == ["FairFace", "UTKFace"]
    assert [len(names) for names in GROUPS.values()] == [1, 6, 13, 3]
    assert sum(task.main_metric == "acc1" for task in TASKS) == 27
    known = {task.key: (task.name, task.images, task.main_metric) for task in TASKS}
    assert known["vtab/flowers"] == ("Oxford Flowers-102", 6149, "mean_per_class_recall")
    assert known["wilds/fmow"] == ("FMoW", 22_108, "acc_worst_region")


def test_aggregates_are_plain_means() -> None:
    values = {task.name: i / 40 for i, task in enumerate(TASKS) if task.main_metric}
    found = aggregates(values)
    assert found["Average"] == pytest.approx(statistics.mean(values.values()))
    assert found["ImageNet"] == values["ImageNet 1k"]
    retrieval = [values[name] for name in ("Flickr", "MSCOCO", "WinoGAViL")]
    assert found["Retrieval"] == pytest.approx(statistics.mean(retrieval))


def test_fewer_tasks_are_not_called_the_average() -> None:
    found = aggregates({"ImageNet 1k": 0.5, "CIFAR-10": 0.25, "mine": 1.0})
    assert "Average" not in found
    assert found["Average of 2 of 38"] == 0.375
    assert (found["ImageNet"], found["VTAB"]) == (0.5, None)


def test_names_of_tasks() -> None:
    assert len(chosen_tasks("datacomp,cifar10")) == 40
    assert chosen_tasks("cifar10, my/set")[1] == "my/set"
    with pytest.raises(UserError, match="comma-separated"):
        chosen_tasks("cifar10,,mnist")

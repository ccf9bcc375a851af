from pathlib import Path

import pytest
from evalsets import write_classification
from samples import write_pool

from capmix.evaluation.results import MAIN
from capmix.pipeline.grid import Cell, write_tables
from capmix.report.gather import Found, gather
from capmix.workspace import Workspace, open_workspace

MEAN = "mean of all sets"


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Probes of two subsets on set a, of a third on set b."""
    folder = tmp_path_factory.mktemp("gather")
    made = open_workspace(str(write_pool(folder / "pool")), str(folder / "work"))
    made.caption("mini", model="mini")
    made.score(model="mini")
    for recipe in ("mini", "raw", "raw-top+synthetic"):
        made.mix("synthetic" if recipe == "mini" else recipe)
    sets = [str(write_classification(folder / name, [0, 1, 2], first_image=i))
            for i, name in enumerate("ab")]  # fmt: skip
    made.probe(subsets=["mini"], evalsets=[sets[1]], seeds=[0, 1, 2])
    made.probe(subsets=["raw", "raw-top30+mini"], evalsets=[sets[0]], seeds=[0])
    return made


def found_in(work: Workspace, recipes: list[str] | None = None) -> Found:
    return gather(work.catalog, work.catalog.scorer(None), recipes)


def test_probes_of_other_evaluation_sets_are_left_out_and_said(work: Workspace) -> None:
    """Those of the sets that most recipes have are compared."""
    found = found_in(work)
    assert {name: len(one) for name, one in found.probes.items()} == {"raw": 1, "raw-top30+mini": 1}
    assert found.notes == [
        "The probes of mini are left out: they were evaluated on b, the others on a. To compare "
        "them, run `capmix probe` with the same --evalsets."
    ]


def test_of_recipes_named_the_first_has_the_evaluation_sets(work: Workspace) -> None:
    found = found_in(work, ["mini", "raw"])
    assert {name: len(one) for name, one in found.probes.items()} == {"mini": 3}
    assert found.notes[0].startswith("The probes of raw are left out: they were evaluated on a,")
    found = found_in(work, ["raw", "mini"])
    assert list(found.probes) == ["mini"]
    found = found_in(work, ["raw"])
    assert (list(found.probes), found.notes) == (["raw"], [])


def test_runs_of_other_tasks_are_left_out_and_said(tmp_path: Path) -> None:
    """A mean over other sets would be compared with theirs."""
    work = open_workspace(str(write_pool(tmp_path / "pool")), str(tmp_path / "work"))
    work.index()
    cells = []
    for name, sets in (("blip", "a"), ("mini", "ab"), ("raw", "ab")):
        for seed in range(2):
            numbers = {(one, metric): 0.2 for one in sets for metric in ("acc1", MAIN)}
            cells.append(Cell("work", name, 8, seed, numbers | {(MEAN, MAIN): 0.2}))
    write_tables(cells, work.store.location, {})
    found = found_in(work)
    assert [run.subset for run in found.runs] == ["mini", "raw"]
    assert found.notes == [
        "The runs of blip are left out: unlike the others, they were evaluated without b. To "
        "compare them, evaluate all on the same tasks."
    ]

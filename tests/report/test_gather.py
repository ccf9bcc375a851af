import io
from pathlib import Path

import numpy as np
import pytest
from samples import write_pool

from capmix.evaluation.results import MAIN
from capmix.pipeline.grid import Cell, write_tables
from capmix.report.gather import Found, gather
from capmix.report.page import render_page
from capmix.report.settings import ReportSettings
from capmix.storage.layout import PROBE_RESULTS, PROBES, SUBSETS
from capmix.storage.marker import Counts, Marker
from capmix.storage.store import Store
from capmix.view.server import make_workbench
from capmix.view.settings import ViewSettings
from capmix.view.workbench import Query, Start
from capmix.workspace import Workspace, open_workspace

MEAN = "mean of all sets"


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Probes of two subsets on set a, and of another subset on set b."""
    folder = tmp_path_factory.mktemp("gather")
    made = open_workspace(str(write_pool(folder / "pool")), str(folder / "work"))
    made.index()
    for name in ("mini", "raw", "raw-top30+mini"):
        made.mix("raw", out=name)
    for seed in range(3):
        add_probe(made.store, "mini", seed, {"b": "digest of b"})
    add_probe(made.store, "raw", 0, {"a": "digest of a"})
    add_probe(made.store, "raw-top30+mini", 0, {"a": "digest of a"})
    return made


def add_probe(store: Store, subset: str, seed: int, evalsets: dict[str, str]) -> None:
    probe, result = (f"{top}/{subset}/seed{seed}" for top in (PROBES, PROBE_RESULTS))
    of_subset = {"subset": store.fingerprint(f"{SUBSETS}/{subset}")}
    with store.draft(probe) as draft:
        draft.commit(Marker(of_subset, {}, 8, Counts(ok=8)))
    hits = io.BytesIO()
    np.savez(hits, **{f"{name}/acc1": np.ones(3, bool) for name in evalsets})
    metrics = {name: {"acc1": 1.0} for name in evalsets}
    inputs = {"checkpoint": store.fingerprint(probe)}
    with store.draft(result) as draft:
        draft.write_bytes(f"{result}.npz", hits.getvalue())
        draft.commit(Marker(inputs, {"evalsets": evalsets}, 3, Counts(ok=3), {"metrics": metrics}))


def found_in(work: Workspace, recipes: list[str] | None = None) -> Found:
    return gather(work.catalog, work.catalog.scorer(None), recipes)


def test_probes_of_other_evaluation_sets_are_left_out_and_said(work: Workspace) -> None:
    """Probes on the sets that most recipes were evaluated on are compared."""
    found = found_in(work)
    assert {name: len(one) for name, one in found.probes.items()} == {"raw": 1, "raw-top30+mini": 1}
    assert found.notes == [
        "Left out: 3 probes of mini, evaluated on b; the others on a. To compare them, run "
        "`capmix probe` with the same --evalsets."
    ]


def test_of_recipes_named_the_first_has_the_evaluation_sets(work: Workspace) -> None:
    found = found_in(work, ["mini", "raw"])
    assert {name: len(one) for name, one in found.probes.items()} == {"mini": 3}
    assert found.notes[0].startswith("Left out: 1 probe of raw, evaluated on a; the others on b.")
    found = found_in(work, ["raw", "mini"])
    assert list(found.probes) == ["mini"]
    found = found_in(work, ["raw"])
    assert (list(found.probes), found.notes) == (["raw"], [])


def test_runs_of_other_tasks_are_left_out_and_said(tmp_path: Path) -> None:
    """Means over different sets are not comparable."""
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


def test_groups_of_classes_have_columns_beside_the_runs(tmp_path: Path) -> None:
    work = open_workspace(str(write_pool(tmp_path / "pool")), str(tmp_path / "work"))
    work.index()
    main = {("a", "acc1"): 0.5, ("a", MAIN): 0.5, (MEAN, MAIN): 0.5}
    rare = {"mini": [0.25, 0.35], "raw": [0.125, 0.125]}
    cells = [
        Cell("work", name, 8, seed, main | {("a", "acc1_group:rare"): value})
        for name, values in rare.items()
        for seed, value in enumerate(values)
    ]
    write_tables(cells, work.store.location, {})
    found = found_in(work)
    shown = {run.subset: run.groups["rare (a)"] for run in found.runs}
    assert shown == pytest.approx({"mini": 30.0, "raw": 12.5})
    page = render_page(found, [], ReportSettings())[1]
    assert '<th scope="col">rare (a)</th>' in page
    assert "<td>30.0</td>" in page


def test_other_files_of_the_same_evaluation_set_are_said(tmp_path: Path) -> None:
    work = open_workspace(str(write_pool(tmp_path / "pool")), str(tmp_path / "work"))
    work.index()
    for name, digest in (("raw", "old"), ("other", "new")):
        work.mix("raw", out=name)
        add_probe(work.store, name, 0, {"a": digest})
    found = found_in(work)
    assert list(found.probes) == ["other"]
    assert found.notes[0].startswith(
        "Left out: 1 probe of raw, evaluated on different files of a; the others on a."
    )


def test_a_source_that_people_wrote_is_known(tmp_path: Path) -> None:
    work = open_workspace(str(write_pool(tmp_path / "pool")), str(tmp_path / "work"))
    work.index()
    bench = make_workbench(work.catalog, ViewSettings(author="ann"))
    uid = bench.listed(Query(), Start())["rows"][0]["uid"]
    row = bench.sample("00000", uid)
    edit = {"text": "a cat", "base": "raw", "digest": row["texts"][0]["digest"]}
    bench.act("00000", uid, row["version"], edit)
    bench.save()
    found = found_in(work)
    assert found.is_of_people("edited")
    assert not found.is_of_people("raw")
    assert not found.is_of_people("mini")
    page = render_page(found, [], ReportSettings())[1]
    assert ">8 images, edited manually</h2>" in page
    assert "<li>edited: edited manually in capmix view</li>" in page

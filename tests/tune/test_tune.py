"""Tuning on a pool whose best threshold is known; see colour_world.py."""

import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from colour_world import MODEL, open_world, write_set, write_world

from capmix.cli.main import main
from capmix.errors import UserError
from capmix.evaluation.other_sets import open_evalset
from capmix.probe.evalset import load_features
from capmix.probe.images import FrozenImages, encoder_of, saved_images
from capmix.tune.results import Tuning
from capmix.tune.split import apart, halves
from capmix.workspace import Workspace

FRACTIONS = [0.08, 0.4, 1.0]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_world(tmp_path_factory.mktemp("tune"))
    open_world(folder)
    return folder


@pytest.fixture(scope="module")
def work(world: Path) -> Workspace:
    return open_world(world)


def tuned(work: Workspace, world: Path, **options: Any) -> Tuning:
    given = {"fraction": FRACTIONS, "budget": 13, "seeds": [0, 1], "steps": 60, "model": MODEL}
    given |= {"evalsets": [str(world / "colours")], "scorer": "imported"}
    return work.tune("raw-top", **given | options)


def files(work: Workspace, folder: str) -> dict[str, bytes]:
    root = Path(work.store.path(folder))
    return {
        str(one.relative_to(root)): one.read_bytes() for one in root.rglob("*") if one.is_file()
    }


@pytest.fixture(scope="module")
def found(work: Workspace, world: Path) -> Tuning:
    return tuned(work, world)


def test_the_planted_threshold_is_found_and_confirmed_on_held_out_images(found: Tuning) -> None:
    assert found.best == "raw-top40"
    assert found.chosen.parameters == {"fraction": 0.4}
    change = found.against["raw"]
    assert change is not None
    assert change.low > 0
    assert found.dev_images + found.held_out_images == 96
    assert found.probes == 3 + 2 + 2 * 2 <= found.budget
    only_chosen = {row.subset for row in found.rows if row.held_out is not None}
    assert only_chosen == {"raw", "raw-top30", "raw-top40"}


def test_held_out_images_are_never_dev_images(work: Workspace, world: Path) -> None:
    images = saved_images(work.store, "colours")
    evalset = open_evalset(str(world / "colours"))
    whole = load_features(work.store, evalset, images, lambda: encoder_of(images, MODEL))
    sides = halves([whole], seed=0)
    dev, held_out = ({item.key for item in side[0].items} for side in (sides.dev, sides.held_out))
    assert dev.isdisjoint(held_out)
    assert dev | held_out == {item.key for item in whole.items}
    other = halves([whole], seed=1).dev[0]
    assert {item.key for item in other.items} != dev
    again = write_set(world / "again", 1000 + 6)  # half of the images are those of `colours`
    copied = load_features(
        work.store, open_evalset(str(again)), images, lambda: encoder_of(images, MODEL)
    )
    kept = apart([whole], [copied]).held_out[0]
    seen = {item.image for item in evalset.items()}
    left = {item.image for item in copied.evalset.items()} - seen
    assert len(kept.items) == len(left) < len(copied.items)


def test_a_second_run_trains_nothing_and_an_interrupted_one_ends_the_same(
    work: Workspace, world: Path, found: Tuning
) -> None:
    before = files(work, "tunes")
    assert tuned(work, world).to_table().equals(found.to_table())
    assert files(work, "tunes") == before
    part = open_world(world, "part")
    tuned(part, world, budget=7)  # some of the same probes, as after an interrupt
    shutil.rmtree(part.store.path("tunes/raw-top/held_out"))
    assert tuned(part, world).to_table().equals(found.to_table())
    table = pq.read_table(part.store.path("tunes/raw-top.parquet"))
    assert table.equals(pq.read_table(work.store.path("tunes/raw-top.parquet")))


def test_the_table_is_of_the_last_search_even_if_the_choice_is_the_same(
    work: Workspace, world: Path
) -> None:
    def search(**options: Any) -> None:
        given = {"out": "again", "seeds": [0], "budget": 5, "held_out": [str(world / "colours")]}
        result = tuned(work, world, **given | options)
        assert result.best == "raw-top40"
        table = pq.read_table(work.store.path("tunes/again.parquet"))
        assert table.equals(result.to_table())

    other = write_set(world / "other", 5000)
    search(fraction=[0.08, 0.4], evalsets=[str(other)])
    search(fraction=[0.4, 1.0], evalsets=[str(other)])
    write_set(world / "third", 7000, images=5)
    search(fraction=[0.4, 1.0], evalsets=[str(world / "third")])


def test_the_command_prints_candidates_choice_and_baselines(
    work: Workspace, world: Path, found: Tuning, capsys: pytest.CaptureFixture[str]
) -> None:
    place = str(world / "work")
    call = ["tune", "--work", place, "--recipe", "raw-top", "--fraction", "0.08,0.4,1"]
    call += ["--budget", "13", "--seeds", "0,1", "--steps", "60", "--model", MODEL]
    assert main([*call, "--scorer", "imported", "--evalsets", str(world / "colours")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == found.lines()
    assert lines[1].split()[:3] == ["chosen", "raw-top40", "201"]
    assert any(line.startswith("against raw: +") and line.endswith("better") for line in lines)


def test_a_span_is_searched(work: Workspace, world: Path) -> None:
    found = tuned(work, world, fraction=(0.2, 0.6), out="span", seeds=[0], budget=5)
    drawn = [row.parameters["fraction"] for row in found.rows if row.role == "candidate"]
    assert len(drawn) == 3
    assert all(0.2 <= one <= 0.6 for one in drawn)
    assert len({int((one - 0.2) / 0.4 * 3) for one in drawn}) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": 6}, "--budget 6: 2 baselines take 4 probes, and two candidates 3; pass at"),
        ({"part": [1, 2]}, "recipe raw-top: no parameter 'part'"),
        ({"fraction": (0.9, 0.1)}, "fraction: 0.9..0.1: expected LOW..HIGH"),
        ({"fraction": [0.4]}, "one candidate; pass several values"),
        ({"fraction": [0.4, 7.0]}, "fraction 7.0: expected a number above 0"),
        ({"out": "a/b"}, "--out a/b: expected letters"),
        ({"embeddings": "none"}, "--embeddings none: not in .*run `capmix score"),
    ],
)
def test_a_wrong_option_is_named(
    work: Workspace, world: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message.replace(".", "\\.").replace("\\.*", ".*")):
        tuned(work, world, **options)


def test_a_candidate_that_selects_nothing_is_recorded(work: Workspace, world: Path) -> None:
    recipe = world / "above.yaml"
    recipe.write_text(
        "name: above{limit}\nabout: x\nparameters: {limit: 0.5}\n"
        "clauses: [{source: raw, where: 'raw_score >= {limit}'}]\n"
    )
    given = {"evalsets": [str(world / "colours")], "scorer": "imported", "model": MODEL}
    space = {"limit": [0.6, 5.0, 0.8]}
    found = work.tune(str(recipe), parameters=space, seeds=[0], budget=5, steps=20, **given)
    (empty,) = [row for row in found.rows if row.subset == "above5.0"]
    assert (empty.rows, empty.seeds, empty.dev) == (None, 0, None)
    assert "selects none" in empty.reason
    assert any(line.startswith("left out: above5.0") for line in found.lines())


def test_frozen_images_of_mini_have_no_settings() -> None:
    assert FrozenImages().is_embedded
    assert FrozenImages().feature_config == {"encoder": "lite0-160"}

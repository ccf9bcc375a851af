"""The small world from drawings to verdicts, with models that have learned nothing yet."""

from pathlib import Path

import pytest
from world import grid as grids
from world.claims import AT_EQUAL_SIZE, CLAIMS, CONTROLS, EXPLORATORY
from world.data import write_gate
from world.figures import draw_figures
from world.gates import check_captioner, check_scorer
from world.grid import (
    FEW,
    MAIN,
    OF_CAPTIONERS,
    STUDIED,
    THINNED_MIXES,
    Grid,
    Scale,
    pool_folder,
)
from world.models import CAPTIONERS, World, train_models, write_models
from world.study import judge, measured, write_tables

# The names are those of real pools, by which the figures sort them.
SCALES = Scale("4k", 1, 512), Scale("16k", 2, 512)


@pytest.mark.slow
def test_the_world_is_built_and_its_claims_are_judged(tmp_path: Path) -> None:
    world = World(tmp_path, scorer_samples=512, captioner_samples=512, clean_shards=1)
    write_models(world)
    grids.write_pools(world, SCALES)
    train_models(world, CAPTIONERS)
    write_gate(tmp_path / "gate", 50)
    named = check_captioner(
        tmp_path / "gate", tmp_path / "gate-work", f"run:{world.run('coca')}", "coca"
    )
    assert 0 <= named["named"] < 0.4  # the gate is closed to such a captioner
    model = f"run:{world.run('scorer')}"
    checked = check_scorer(pool_folder(world, SCALES[0]), tmp_path / "score-work", model)
    assert sum(checked["top"].values()) == pytest.approx(1)
    assert 0 <= checked["auc"]["style"] <= 1
    recipes = (*MAIN, *STUDIED[:1], *STUDIED[3:4], *THINNED_MIXES, *OF_CAPTIONERS)
    done = [
        Grid(SCALES[0], (*FEW, *THINNED_MIXES), seeds=(0, 1)),
        Grid(SCALES[1], recipes, captioners=CAPTIONERS, seeds=(0, 1)),
        Grid(SCALES[1], FEW, loss="siglip", seeds=(0, 1)),
    ]
    for one in done:
        grids.run_grid(grids.write_grid(world, one))
    measures = measured(world, done)
    rows = judge(world, done, measures)
    write_tables(world, done, measures, rows, tmp_path / "tables")
    claims = {row.claim for row in rows if row.grid == "usual-16k"}
    expected = (*CLAIMS, *CONTROLS, *AT_EQUAL_SIZE, *EXPLORATORY)
    assert claims > {claim.name for claim in expected}
    assert {row.grid for row in rows if row.verdict == "not measured"} == {"usual-4k"}  # of FEW
    assert "image quality matters more at scale" in {row.claim for row in rows}
    probes = (tmp_path / "tables/probes.csv").read_text().splitlines()
    assert len(probes) == 1 + 2 * (len(FEW) + len(THINNED_MIXES) + len(recipes))
    assert all(path.stat().st_size > 10_000 for path in draw_figures(tmp_path / "tables"))

"""The small world from drawings to verdicts, with models that have learned nothing yet."""

from pathlib import Path

import pytest
from world.claims import CLAIMS, judged, read_cells
from world.data import write_gate
from world.gates import check_captioner, check_scorer
from world.grid import Scale, pool_folder, run_grid, write_grid, write_pools
from world.models import World, train_captioner, train_scorer, write_models

SCALE = Scale("1k", 1, 512)


@pytest.mark.slow
def test_the_world_is_built_and_its_claims_are_judged(tmp_path: Path) -> None:
    world = World(tmp_path, scorer_samples=512, captioner_samples=512, clean_shards=1)
    write_models(world)
    write_pools(world, [SCALE])
    captioner, scorer = train_captioner(world), train_scorer(world)
    write_gate(tmp_path / "gate", 50)
    named = check_captioner(
        tmp_path / "gate", tmp_path / "gate-work", f"run:{captioner.path}", "coca"
    )
    assert 0 <= named["named"] < 0.4  # the gate is closed to such a captioner
    checked = check_scorer(pool_folder(world, SCALE), tmp_path / "score-work", f"run:{scorer.path}")
    assert sum(checked["top"].values()) == pytest.approx(1)
    grid = write_grid(world, SCALE, f"run:{captioner.path}", f"run:{scorer.path}", seeds=(0, 1))
    run_grid(grid)
    rows = judged(read_cells(grid.with_suffix("")))
    assert [row["claim"] for row in rows] == [claim.name for claim in CLAIMS]

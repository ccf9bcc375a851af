"""Build the small world: `python -m world FOLDER [SCALE ...] [--recipes few|main|all] [--quick]`.

See docs/world.md.

Every step is kept, so the same command resumes.
"""

import argparse
import json
import logging
import sys
from pathlib import Path
from typing import Any

from capmix import UserError
from capmix.storage.store import Store
from world.data import write_gate
from world.figures import draw_figures
from world.gates import check_captioner, check_clip, check_scorer, closed
from world.grid import (
    MIDDLE,
    SCALES,
    Grid,
    Scale,
    few_grids,
    main_grids,
    pool_folder,
    run_grid,
    study_grids,
    write_grid,
    write_pools,
)
from world.manifest import claim_folder
from world.models import CAPTIONERS, QUICK_SAMPLES, World, train_models, write_models
from world.study import judge, measured, write_tables

GRIDS = {"few": few_grids, "main": main_grids, "all": study_grids}  # by folder of tables


def main() -> int:
    """Build the world and print its gates and claims.

    Returns 1 if a gate is closed, 2 if something else has to be changed first.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("scales", nargs="*", default=["4k"], metavar="SCALE", help=f"{[*SCALES]}")
    parser.add_argument(
        "--recipes",
        choices=GRIDS,
        default="main",
        help="few = those of the first claims; main = also controls; all = the grids of all claims",
    )
    parser.add_argument("--quick", action="store_true", help="train the captioner on fewer samples")
    given = parser.parse_args()
    if unknown := [name for name in given.scales if name not in SCALES]:
        parser.error(f"unknown scale {unknown[0]}; expected {', '.join(SCALES)}")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if given.recipes == "all" and MIDDLE.name not in given.scales:
        parser.error(f"--recipes all needs the scale {MIDDLE.name}")
    scales = sorted((SCALES[name] for name in set(given.scales)), key=lambda one: one.shards)
    samples = QUICK_SAMPLES if given.quick else World.captioner_samples
    world = World(given.folder.resolve(), captioner_samples=samples)
    try:
        return build(world, scales, given.recipes)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2


def build(world: World, scales: list[Scale], name: str) -> int:
    """Build the world, check its gates and run those of GRIDS. Returns 1 if a gate is closed."""
    claim_folder(world.folder)
    write_models(world)
    write_pools(world, scales)
    train_models(world, CAPTIONERS if name == "all" else CAPTIONERS[:1])
    gates = _gates(world, scales[0])
    Store(str(world.folder)).write_json("gates.json", gates)
    print(json.dumps(gates, indent=1))
    for line in (missed := closed(gates)):
        print(f"gate closed: {line}", file=sys.stderr)
    if missed:
        return 1
    _run(world, GRIDS[name](scales), world.folder / f"results/{name}")
    return 0


def _gates(world: World, scale: Scale) -> dict[str, Any]:
    gate, work = world.folder / "pools/gate", world.folder / "gates"
    write_gate(gate)
    captioner, scorer = f"run:{world.run('coca')}", f"run:{world.run('scorer')}"
    return {
        "scale": scale.name,
        "captioner": check_captioner(gate, work / "captioner", captioner, "coca"),
        "scorer": check_scorer(pool_folder(world, scale), work / f"scorer-{scale.name}", scorer),
        "times_chance": check_clip(world.run("scorer"), world.folder / "evalsets"),
    }


def _run(world: World, grids: list[Grid], results: Path) -> None:
    for grid in grids:
        if grid.noise != "usual":
            write_pools(world, [grid.scale], grid.noise)
        run_grid(write_grid(world, grid))
    measures = measured(world, grids)
    rows = judge(world, grids, measures)
    write_tables(world, grids, measures, rows, results)
    draw_figures(results)
    for row in rows:
        bounds = "" if row.low is None else f" [{row.low:.3f}, {row.high:.3f}]"
        value = "" if row.value is None else f" {row.value:.3f}"
        of = f", {row.metric}" if row.metric else ""
        print(f"{row.grid}: {row.claim}{of}: {row.verdict} ({row.compared}{value}{bounds})")


if __name__ == "__main__":
    sys.exit(main())

"""Build the small world: `python -m world FOLDER [SCALE ...]`. See docs/world.md.

Every step is kept, so the same command resumes.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow.csv import write_csv

import capmix
from capmix.storage.store import Store
from world.claims import judged, read_cells
from world.data import write_gate
from world.gates import check_captioner, check_clip, check_scorer, closed
from world.grid import SCALES, Scale, pool_folder, run_grid, write_grid, write_pools
from world.manifest import claim_folder
from world.models import World, train_models, write_models


def main() -> int:
    """Build the world and print its gates and claims. Returns 1 if a gate is closed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("scales", nargs="*", default=["4k"], metavar="SCALE", help=f"{[*SCALES]}")
    parser.add_argument("--captioner-samples", type=int, default=World.captioner_samples)
    parser.add_argument("--scorer-samples", type=int, default=World.scorer_samples)
    given = parser.parse_args()
    if unknown := [name for name in given.scales if name not in SCALES]:
        parser.error(f"unknown scale {unknown[0]}; expected {', '.join(SCALES)}")
    scales = [SCALES[name] for name in given.scales]
    world = World(given.folder.resolve(), given.scorer_samples, given.captioner_samples)
    claim_folder(world.folder)
    write_models(world)
    write_pools(world, scales)
    runs = train_models(world)
    captioner, scorer = runs["coca"], runs["scorer"]
    gates = _gates(world, captioner, scorer, scales[0])
    Store(str(world.folder)).write_json("gates.json", gates)
    print(json.dumps(gates, indent=1))
    for line in (missed := closed(gates)):
        print(f"gate closed: {line}", file=sys.stderr)
    if missed:
        return 1
    for scale in scales:
        path = write_grid(world, scale, f"run:{captioner.path}", f"run:{scorer.path}")
        run_grid(path)
        table = pa.Table.from_pylist(judged(read_cells(path.with_suffix(""))))
        write_csv(table, path.with_suffix("") / "results/claims.csv")
        print(scale.name, table.to_pandas().to_string(index=False))
    return 0


def _gates(world: World, captioner: capmix.Run, scorer: capmix.Run, scale: Scale) -> dict[str, Any]:
    gate, work = world.folder / "pools/gate", world.folder / "gates"
    write_gate(gate)
    pool, model = pool_folder(world, scale), f"run:{scorer.path}"
    return {
        "captioner": check_captioner(gate, work / "captioner", f"run:{captioner.path}", "coca"),
        "scorer": check_scorer(pool, work / f"scorer-{scale.name}", model),
        "times_chance": check_clip(scorer.path, world.folder / "evalsets"),
    }


if __name__ == "__main__":
    sys.exit(main())

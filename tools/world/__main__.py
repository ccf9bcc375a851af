"""Build the small world: `python -m world FOLDER [SCALE ...]`. See docs/world.md.

Every step is kept, so the same command resumes.
"""

import argparse
import json
from pathlib import Path

import capmix
from world.claims import judged, read_cells
from world.data import write_gate
from world.gates import check_captioner, check_scorer
from world.grid import SCALES, pool_folder, run_grid, write_grid, write_pools
from world.models import World, train_captioner, train_scorer, write_models


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("scales", nargs="*", default=["4k"], help=f"of {', '.join(SCALES)}")
    parser.add_argument("--captioner-samples", type=int, default=World.captioner_samples)
    parser.add_argument("--scorer-samples", type=int, default=World.scorer_samples)
    given = parser.parse_args()
    scales = [SCALES[name] for name in given.scales]
    world = World(given.folder.resolve(), given.scorer_samples, given.captioner_samples)
    write_models(world)
    write_pools(world, scales)
    captioner, scorer = train_captioner(world), train_scorer(world)
    gates = _gates(world, captioner, scorer, pool_folder(world, scales[0]))
    print(json.dumps(gates, indent=1))
    for scale in scales:
        path = write_grid(world, scale, f"run:{captioner.path}", f"run:{scorer.path}")
        run_grid(path)
        for row in judged(read_cells(path.with_suffix(""))):
            print(scale.name, row)


def _gates(
    world: World, captioner: capmix.Run, scorer: capmix.Run, pool: Path
) -> dict[str, object]:
    gate, work = world.folder / "pools/gate", world.folder / "gates"
    write_gate(gate)
    return {
        "captioner": check_captioner(gate, work / "captioner", f"run:{captioner.path}", "coca"),
        "scorer": check_scorer(pool, work / "scorer", f"run:{scorer.path}"),
    }


if __name__ == "__main__":
    main()

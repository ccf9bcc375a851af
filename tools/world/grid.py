"""The grid: recipes x seeds for a pool size, as a pipeline file for `capmix run`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from capmix.pipeline.config import load_pipeline
from capmix.pipeline.run import run_pipeline
from world.data import link_pool, write_evalsets, write_pool
from world.models import SCHEDULE, World

FRACTION = 0.3
SEEDS = (0, 1, 2)
PARALLEL = 2  # runs at once, of one thread each


@dataclass(frozen=True)
class Scale:
    """A pool size in shards of 1,000, and the samples that every run on it sees."""

    name: str
    shards: int
    samples: int


SCALES = {
    scale.name: scale
    for scale in (
        Scale("4k", 4, 50_000),
        Scale("16k", 16, 100_000),
        Scale("64k", 64, 150_000),
        Scale("256k", 256, 250_000),
    )
}
RECIPES: tuple[str | dict[str, Any], ...] = (
    "raw",
    {"recipe": "raw-top", "fraction": FRACTION},
    {"recipe": "synthetic", "synthetic": "coca"},
    {"recipe": "synthetic-top", "fraction": FRACTION, "synthetic": "coca"},
    {"recipe": "raw-top+synthetic", "fraction": FRACTION, "synthetic": "coca"},
    {"recipe": "raw-top+synthetic-above", "fraction": FRACTION, "synthetic": "coca"},
    "control-raw-shuffled",
    {"recipe": "control-random", "fraction": FRACTION},
    {"recipe": "oracle", "source": "true"},
)


def write_pools(world: World, scales: list[Scale], noise: str = "usual") -> None:
    """Write the largest pool; the others are its first shards, as hard links."""
    largest = max(scales, key=lambda scale: scale.shards)
    write_pool(pool_folder(world, largest, noise), largest.shards, noise)
    for scale in scales:
        if scale is not largest:
            source = pool_folder(world, largest, noise)
            link_pool(source, pool_folder(world, scale, noise), scale.shards)
    write_evalsets(world.folder / "evalsets")


def pool_folder(world: World, scale: Scale, noise: str = "usual") -> Path:
    """Return the folder of a pool."""
    return world.folder / f"pools/{noise}/{scale.name}"


def write_grid(
    world: World,
    scale: Scale,
    captioner: str,
    scorer: str,
    noise: str = "usual",
    seeds: tuple[int, ...] = SEEDS,
    recipes: tuple[str | dict[str, Any], ...] = RECIPES,
) -> Path:
    """Write the pipeline file of a grid; `captioner` and `scorer` are names for --model."""
    training = {key: value for key, value in SCHEDULE.items() if key != "yes"}
    grid = {
        "pool": str(pool_folder(world, scale, noise)),
        "work": str(world.folder / f"grids/{noise}-{scale.name}"),
        "caption": {
            "coca": {"model": captioner, "top_k": 50, "temperature": 0.75, "max_tokens": 20},
            "true": {"model": "field:true"},
        },
        "score": {"model": scorer, "sources": ["raw", "coca"], "save_embeddings": True},
        "mix": {"recipes": list(recipes)},
        "probe": {"seeds": list(seeds), "evalsets": [str(world.folder / "evalsets/world-classes")]},
        "train": training
        | {"model": str(world.clip), "samples": scale.samples, "seeds": list(seeds)}
        | {"parallel": PARALLEL},
        "evaluate": {
            "evalsets": str(world.folder / "evalsets"),
            "tasks": "world-classes,world-pairs",
        },
    }
    path = world.folder / f"grids/{noise}-{scale.name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(grid, sort_keys=False), "utf-8")
    return path


def run_grid(path: Path) -> None:
    """Run a pipeline file, or resume it."""
    run_pipeline(load_pipeline(str(path)))

"""The grids: recipes x seeds on a pool, each a pipeline file for `capmix run`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

import capmix
from world.claims import MATCHED, THINNED, UNDAMAGED
from world.data import link_pool, write_evalsets, write_pool
from world.drawings import object_classes
from world.models import CAPTIONERS, SCHEDULE, World

Recipe = str | dict[str, Any]
FRACTION = 0.3
OTHER_FRACTIONS = (0.1, 0.5, 0.7)
PERCENTAGES = sorted(round(100 * one) for one in (FRACTION, *OTHER_FRACTIONS))
SEEDS = (0, 1, 2)
PARALLEL = 2  # runs at once, of one thread each
MEASURED = 4000  # samples for topics: the smallest pool
# Shares of the mix that are left, by `draw`: as many images as without the damaged ones (scenes.py:
# 0.85 x 0.85 x 0.9), and as many as raw-top30 has in the smallest pool (1,201 of 3,795).
UNDAMAGED_SHARE, MATCHED_SHARE = 0.65, 0.3165


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


@dataclass(frozen=True)
class Grid:
    """Recipes on a pool, trained with a loss."""

    scale: Scale
    recipes: tuple[Recipe, ...]
    noise: str = "usual"
    captioners: tuple[str, ...] = CAPTIONERS[:1]
    loss: Literal["clip", "siglip"] = "clip"
    seeds: tuple[int, ...] = SEEDS

    @property
    def name(self) -> str:
        return f"{self.noise}-{self.scale.name}" + ("" if self.loss == "clip" else f"-{self.loss}")

    @property
    def references(self) -> tuple[str, ...]:
        """Texts that people would write: true ones and, for CIDEr, generic ones as COCO's."""
        return ("true", "generic") if self.captioners == CAPTIONERS else ("true",)

    @property
    def is_probed(self) -> bool:
        """Whether probes are trained too; the embeddings of large pools take longer than a run."""
        return (self.noise, self.loss) == ("usual", "clip") and self.scale.shards <= MIDDLE.shards

    def file(self, world: World) -> Path:
        return world.folder / f"grids/{self.name}.yaml"

    def folder(self, world: World) -> Path:
        """Return the work directory."""
        return world.folder / f"grids/{self.name}"


def filtered(fraction: float = FRACTION) -> dict[str, Any]:
    """Return the recipe that keeps the top fraction of the raw texts."""
    return {"recipe": "raw-top", "fraction": fraction}


def mixed(fraction: float = FRACTION, captioner: str = "coca", **more: Any) -> dict[str, Any]:
    """Return the paper's mix: raw texts above a threshold, else captions above it."""
    recipe = {"recipe": "raw-top+synthetic-above", "fraction": fraction, "synthetic": captioner}
    return recipe | more


TRUE: Recipe = {"recipe": "oracle", "source": "true"}
MAIN: tuple[Recipe, ...] = (
    "raw",
    filtered(),
    {"recipe": "synthetic", "synthetic": "coca"},
    {"recipe": "synthetic-top", "fraction": FRACTION, "synthetic": "coca"},
    {"recipe": "raw-top+synthetic", "fraction": FRACTION, "synthetic": "coca"},
    mixed(),
    "control-raw-shuffled",
    {"recipe": "control-random", "fraction": FRACTION},
    TRUE,
)
THINNED_MIXES: tuple[Recipe, ...] = (
    mixed(where="not field.is_damaged", out=UNDAMAGED),
    mixed(where=f"draw < {UNDAMAGED_SHARE}", out=THINNED),
    mixed(where=f"draw < {MATCHED_SHARE}", out=MATCHED),
)
STUDIED: tuple[Recipe, ...] = (
    *(filtered(fraction) for fraction in OTHER_FRACTIONS),
    *(mixed(fraction) for fraction in OTHER_FRACTIONS),
    *THINNED_MIXES,
)
OF_CAPTIONERS: tuple[Recipe, ...] = tuple(
    recipe
    for name in CAPTIONERS[1:]
    for recipe in ({"recipe": "synthetic", "synthetic": name}, mixed(captioner=name))
)
FEW: tuple[Recipe, ...] = (
    "raw",
    filtered(),
    {"recipe": "synthetic", "synthetic": "coca"},
    mixed(),
)
MIDDLE = SCALES["16k"]  # for the studies that need one scale only


def few_grids(scales: Sequence[Scale]) -> list[Grid]:
    """Return a grid of the recipes that the first claims and the upper control need."""
    return [Grid(scale, (*FEW, TRUE)) for scale in scales]


def main_grids(scales: Sequence[Scale]) -> list[Grid]:
    """Return the grid of the paper's recipes for each scale."""
    return [Grid(scale, MAIN) for scale in scales]


def study_grids(scales: Sequence[Scale]) -> list[Grid]:
    """Return the grids of all claims: the main ones with more recipes, and those of MIDDLE."""
    of_scale = [
        Grid(scale, (*MAIN, *STUDIED, *OF_CAPTIONERS), captioners=CAPTIONERS)
        if scale == MIDDLE
        else Grid(scale, (*MAIN, *STUDIED))
        for scale in scales
    ]
    siglip = Grid(MIDDLE, FEW, loss="siglip")
    return [*of_scale, siglip, *(Grid(MIDDLE, FEW, noise) for noise in ("more", "less"))]


def write_pools(world: World, scales: Sequence[Scale], noise: str = "usual") -> None:
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


def write_grid(world: World, grid: Grid) -> Path:
    """Write the pipeline file of a grid."""
    training = {key: value for key, value in SCHEDULE.items() if key != "yes"}
    model = world.sigmoid if grid.loss == "siglip" else world.clip
    scorer = f"run:{world.run('scorer')}"
    evalsets = str(world.folder / "evalsets")
    drawing = {"top_k": 50, "temperature": 0.75, "max_tokens": 20}
    pipeline: dict[str, Any] = {
        "pool": str(pool_folder(world, grid.scale, grid.noise)),
        "work": str(grid.folder(world)),
        "caption": {name: {"model": f"run:{world.run(name)}"} | drawing for name in grid.captioners}
        | {name: {"model": f"field:{name}"} for name in grid.references},
        "score": {"model": scorer, "sources": ["raw", *grid.captioners]},
        "measure": measuring(world, grid),
        "mix": {"recipes": list(grid.recipes)},
        "train": training
        | {"model": str(model), "loss": grid.loss, "samples": grid.scale.samples}
        | {"seeds": list(grid.seeds), "parallel": PARALLEL},
        "evaluate": {
            "evalsets": evalsets,
            "tasks": "world-classes,world-pairs,world-pairs-web",
        },
    }
    if grid.is_probed:
        sets = [f"{evalsets}/world-classes"]
        pipeline["probe"] = {"seeds": list(grid.seeds), "evalsets": sets}
    path = grid.file(world)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(pipeline, sort_keys=False), "utf-8")
    return path


def measuring(world: World, grid: Grid) -> dict[str, Any]:
    """Return the options of `measure`."""
    return {
        "sources": ["raw", *grid.captioners, *grid.references],
        "model": f"run:{world.run('scorer')}",
        "topics": len(object_classes()),
        "sample": MEASURED,
    } | ({"references": "source:generic", "java": False} if "generic" in grid.references else {})


def run_grid(path: Path) -> None:
    """Run a pipeline file, or resume it."""
    capmix.run_pipeline(capmix.load_pipeline(path))

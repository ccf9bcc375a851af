"""What `capmix measure` is asked for."""

from pydantic import BaseModel, ConfigDict, Field


class MeasureSettings(BaseModel):
    """How a pool is measured.

    `sketch` counts different things with HyperLogLog in fixed memory. `sample` is about how many
    samples, drawn by uid and `seed`, are tagged for nouns, mapped and shown. `references` is a COCO
    or NoCaps annotation file, or `source:NAME` for texts of the pool that serve as references;
    `java` lets the tools of pycocoevalcap that need it run. `topics` is the number of clusters of
    texts, 0 for none, and `map_points` the texts of each source on the map.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    sketch: bool = False
    sample: int = Field(default=20_000, ge=1)
    seed: int = 0
    references: str | None = None
    java: bool = True
    topics: int = Field(default=20, ge=0)
    map_points: int = Field(default=1_000, ge=10)

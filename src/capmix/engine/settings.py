"""Where the work is done: in this process, in several, or on a Ray cluster."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class EngineSettings(BaseModel):
    """`local`: one process; where there are several GPUs, one worker process for each of them.

    `ray`: actors of a Ray cluster at `address` (`auto`: the one that this machine is part of; by
    default RAY_ADDRESS, or else Ray is started here). `workers` processes or actors (default for
    Ray: as many as the cluster has room for), each of which loads the model once; `gpus_per_worker`
    (default 1 where there are GPUs and the model uses them) and `cpus_per_worker` are Ray's.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Literal["local", "ray"] = "local"
    workers: int | None = Field(default=None, ge=1)
    address: str | None = None
    gpus_per_worker: float | None = Field(default=None, ge=0)
    cpus_per_worker: float = Field(default=1.0, ge=0)

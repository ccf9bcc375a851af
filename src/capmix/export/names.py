"""Names of samples: as they are in the pool, and as they may be written to a disk."""

from capmix.pool import Pool, Sample
from capmix.pool.lance import SUFFIX as LANCE
from capmix.pool.pool import PARQUET_SUFFIX, TAR_SUFFIXES

LONGEST_PATH = 4096  # characters
CONTAINERS = (*TAR_SUFFIXES, PARQUET_SUFFIX, LANCE)


def keys_are_names(pool: Pool, shard: str) -> bool:
    """Whether a shard's keys are paths of image files below the pool's folder. In tars, parquet
    files and Lance datasets a key has no suffix."""
    return not pool.files[shard][0].endswith(CONTAINERS)


def pool_name(sample: Sample, key_is_name: bool) -> str:
    """What a sample's image is called in the pool: its path below the folder; in tars, parquet
    files and Lance datasets what the field `filename` says, where there is one, so that a name
    outlives several exports, or else the member's name (in tables: the row's number)."""
    if key_is_name:
        return sample.key
    known = sample.metadata.get("filename")
    if isinstance(known, str) and 0 < len(known) <= LONGEST_PATH:
        return known.encode("utf-8", "replace").decode()  # JSON can hold halves of characters
    return f"{sample.key}.{sample.suffix}"

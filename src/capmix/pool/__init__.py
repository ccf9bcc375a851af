from capmix.pool.pool import EMBEDDED, ImagePool, Pool, embedded_folder, open_pool, shown_location
from capmix.pool.sample import BadSample, Sample, Shard

__all__ = [
    "EMBEDDED",
    "BadSample",
    "ImagePool",
    "Pool",
    "Sample",
    "Shard",
    "embedded_folder",
    "open_pool",
    "shown_location",
]

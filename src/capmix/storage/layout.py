"""Every folder and file name of a work directory, an export and a grid's results.

.markers/<folder>/<shard>.json             one per finished part; readers of a folder ignore it
pool.json                                  which pool the directory belongs to
samples/<shard>                            the index: one row per sample
fields/<shard>                             the fields of the samples' JSON, as columns
embeddings/<encoder>/image/<shard>         vectors of the images
captions/<source>/<shard>                  texts of a captioner
scores/<scorer>/<source>/<shard>           image-text similarities
.arrays/scores/<scorer>/<source>/<shard>   copies of the scores that are quick to read
columns/<annotation>/<shard>               columns for recipes
.carried/<source>                          captions of images that a run may have to move
measures/, subsets/, probes/, probe_results/, evalsets/    not by shard
report/, shards/<subset>, runs/<subset>-seed<k>, results/  what is written for people
running/                                   runs under way
.scratch/                                  what runs keep on disk while they work
error.log                                  traceback of the last internal error
"""

ABOUT = "pool.json"
MARKERS = ".markers"
ARRAYS = ".arrays"
CARRIED = ".carried"
SAMPLES = "samples"
FIELDS = "fields"
EMBEDDINGS = "embeddings"
CAPTIONS = "captions"
SCORES = "scores"
ANNOTATIONS = "columns"
MEASURES = "measures"
SUBSETS = "subsets"
PROBES = "probes"
PROBE_RESULTS = "probe_results"
EVALSETS = "evalsets"
RUNNING = "running"
SCRATCH = ".scratch"
CRASH_LOG = "error.log"
REPORT = "report"
SHARDS = "shards"
RUNS = "runs"
RESULTS = "results"

EXPORT_ABOUT = "_capmix_export.json"
EXPORT_MARKERS = "_markers"
EXPORT_FILES = ".manifest"
EXPORT_CARD = "README.md"

RAW = "raw"
# Without rows that say what became of a sample; those of FIELDS are in the index.
NOT_OF_SAMPLES = (
    FIELDS, MEASURES, SUBSETS, PROBES, PROBE_RESULTS, EVALSETS, RUNNING, REPORT, RESULTS,
)  # fmt: skip


def part_name(folder: str, shard: str) -> str:
    """The part of one shard; `folder` is empty for an export, whose parts are its shards."""
    return f"{folder}/{shard}" if folder else shard


def embeddings_folder(encoder: str) -> str:
    """Vectors of the pool's images by one encoder."""
    return f"{EMBEDDINGS}/{encoder}/image"


def captions_folder(source: str) -> str:
    """Captions of one source."""
    return f"{CAPTIONS}/{source}"


def scores_folder(scorer: str, source: str) -> str:
    """Scores that one scorer gave the texts of one source."""
    return f"{SCORES}/{scorer}/{source}"


def texts_folder(source: str) -> str:
    """Where the texts of a source are: the index for the pool's own."""
    return SAMPLES if source == RAW else captions_folder(source)


def annotation_folder(name: str) -> str:
    """Columns of one annotation."""
    return f"{ANNOTATIONS}/{name}"

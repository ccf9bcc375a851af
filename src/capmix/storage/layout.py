"""Names of all folders and files of a work directory, an export and the results of a grid.

.markers/<folder>/<shard>.json             one per finished part; table readers skip this folder
pool.json                                  the pool that the directory belongs to
samples/<shard>                            the index: one row per sample
fields/<shard>                             fields of the samples' JSON, as columns
embeddings/<encoder>/image/<shard>         image embeddings
captions/<source>/<shard>                  captions of one source
scores/<scorer>/<source>/<shard>           image-text similarities
.arrays/scores/<scorer>/<source>/<shard>   copies of the scores as arrays, which load faster
columns/<annotation>/<shard>               columns for recipes
matches/<annotation>/<shard>               metadata entries that occur in the texts
metadata/<annotation>/entries, .../counts  list of metadata entries; how many texts each occurs in
.carried/<source>                          captions of images that a run may have to move
.partial/<folder>/                         results of shards that are not complete yet
measures/, subsets/, probes/, probe_results/, tunes/, evalsets/    not by shard
report/, shards/<subset>, runs/<subset>-seed<k>, results/  outputs for the user
edits/<source>/journal.jsonl               edits made in `capmix view`, one action per line
running/                                   runs in progress
.scratch/                                  temporary files of runs
error.log                                  traceback of the last internal error
"""

ABOUT = "pool.json"
MARKERS = ".markers"
ARRAYS = ".arrays"
CARRIED = ".carried"
PARTIAL = ".partial"
SAMPLES = "samples"
FIELDS = "fields"
EMBEDDINGS = "embeddings"
CAPTIONS = "captions"
SCORES = "scores"
ANNOTATIONS = "columns"
MATCHES = "matches"
METADATA = "metadata"
MEASURES = "measures"
SUBSETS = "subsets"
PROBES = "probes"
PROBE_RESULTS = "probe_results"
TUNES = "tunes"
EVALSETS = "evalsets"
EDITS = "edits"
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
EDITED = "edited"  # default source of `capmix view`
# Folders whose rows do not have the status of a sample; the status of FIELDS rows is in the index.
NOT_OF_SAMPLES = (
    FIELDS, METADATA, MEASURES, SUBSETS, PROBES, PROBE_RESULTS, TUNES, EVALSETS, RUNNING, REPORT,
    RESULTS,
)  # fmt: skip


def part_name(folder: str, shard: str) -> str:
    """Return the name of a shard's part; `folder` is empty in an export, where parts are shards."""
    return f"{folder}/{shard}" if folder else shard


def embeddings_folder(encoder: str) -> str:
    """Return the folder of image embeddings of one encoder."""
    return f"{EMBEDDINGS}/{encoder}/image"


def captions_folder(source: str) -> str:
    """Return the folder of captions of one source."""
    return f"{CAPTIONS}/{source}"


def scores_folder(scorer: str, source: str) -> str:
    """Return the folder of one scorer's scores for the texts of one source."""
    return f"{SCORES}/{scorer}/{source}"


def texts_folder(source: str) -> str:
    """Return the folder with the texts of a source; for `raw`, that is the index."""
    return SAMPLES if source == RAW else captions_folder(source)


def annotation_folder(name: str) -> str:
    """Return the folder of one annotation."""
    return f"{ANNOTATIONS}/{name}"


def matches_folder(name: str) -> str:
    """Return the folder of the metadata entries that occur in each text, of one annotation."""
    return f"{MATCHES}/{name}"


def entries_part(name: str) -> str:
    """Return the part with the list of metadata entries of one annotation."""
    return f"{METADATA}/{name}/entries"


def counts_part(name: str) -> str:
    """Return the part with the number of texts and the probability of each metadata entry."""
    return f"{METADATA}/{name}/counts"

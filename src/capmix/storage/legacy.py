"""What capmix 0.1 wrote: markers beside the parts, without a format number or columns."""

from capmix.storage.layout import (
    ANNOTATIONS,
    CAPTIONS,
    EMBEDDINGS,
    EVALSETS,
    MEASURES,
    PROBE_RESULTS,
    PROBES,
    SAMPLES,
    SCORES,
    SUBSETS,
)

STATUS = ("uid", "key", "status", "reason", "detail")
# Columns of the parts, by the first folder of their names.
COLUMNS = {
    SAMPLES: (*STATUS, "text", "width", "height", "bytes", "sha256"),
    EMBEDDINGS: STATUS,
    CAPTIONS: (*STATUS, "k", "text", "finish", "flags"),
    SCORES: (*STATUS, "k", "score", "truncated"),
}
# Folders in which a .json file was a marker.
MARKED = (
    SAMPLES, EMBEDDINGS, CAPTIONS, SCORES, ANNOTATIONS, MEASURES, SUBSETS, PROBES, PROBE_RESULTS,
    EVALSETS,
)  # fmt: skip


def columns_of(part: str) -> tuple[str, ...]:
    """The columns of a part of 0.1; none where its kind had no fixed ones."""
    return COLUMNS.get(part.partition("/")[0], ())

"""Topics that a subset covers, counted over the sampled texts of coverage.py."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from capmix.errors import UserError
from capmix.measure.coverage import AT_LEAST, PART, TEXTS_OF_SOURCE, TOPICS, effective_number
from capmix.mix.subset import SubsetRows
from capmix.storage.store import Store


@dataclass(frozen=True)
class TopicCoverage:
    """The topics of a subset's rows whose samples are in the measured sample.

    `counts` is the number of these rows by topic; `unknown` are further rows whose text was not
    measured: empty and shuffled texts, and captions other than the measured one of several.
    """

    counts: list[int]
    unknown: int

    def covered(self, at_least: int = AT_LEAST) -> int:
        """Return the number of topics with at least this many rows."""
        return sum(count >= at_least for count in self.counts)

    @property
    def effective(self) -> float:
        """The exponential of the entropy of the shares: 1 to the number of topics; 0 if empty."""
        total = sum(self.counts)
        return effective_number(np.array(self.counts) / total) if total else 0.0


class UnmeasuredSourceError(UserError):
    """A subset has texts of a source whose topics were not measured."""


@dataclass(frozen=True)
class MeasuredTopics:
    """The sampled uids, the topic of each measured text, their sources and the number of topics."""

    sampled: pa.Array
    topic_of: Mapping[str, int]
    sources: frozenset[str]
    topics: int

    @classmethod
    def read(cls, store: Store) -> "MeasuredTopics":
        """Read what `capmix measure` wrote. Raises UserError if no topics were measured."""
        marker = store.read_marker(PART)
        if marker is None or TOPICS not in marker.files:
            raise UserError(
                f"no topics of texts in {store.location}: run `capmix measure --model MODEL` first"
            )
        known = store.read_table(TOPICS, part=PART)
        sources = frozenset(marker.config["sources"])
        return cls(_sampled(known), _by_text(known), sources, len(marker.extra["topics"]))

    def of(self, subset: SubsetRows) -> TopicCoverage:
        """Count the rows of a subset by topic. A row counts once, regardless of its weight.

        Raises UnmeasuredSourceError if the topics of a source were not measured.
        """
        found: list[int] = []
        for batch in subset.batches():
            if missing := set(pc.unique(batch["source"]).to_pylist()) - self.sources:
                raise UnmeasuredSourceError(
                    f"topics: the texts of {min(missing)} were not measured; run `capmix measure` "
                    "with this source in --sources"
                )
            rows = batch.filter(pc.is_in(batch["uid"], self.sampled))
            found += [self.topic_of.get(text, -1) for text in rows["text"].to_pylist()]
        topics = np.array(found, np.int64)
        counts = np.bincount(topics[topics >= 0], minlength=self.topics)
        return TopicCoverage(counts.tolist(), int((topics < 0).sum()))


def _sampled(known: pa.Table) -> pa.Array:
    """Return the uids up to the draw to which the texts of every source were measured.

    Beyond it, rows of a source with TEXTS_OF_SOURCE texts would be missing from the counts.
    """
    ends = [
        pc.max(texts["draw"]).as_py()
        for source in pc.unique(known["source"])
        if len(texts := known.filter(pc.equal(known["source"], source))) >= TEXTS_OF_SOURCE
    ]
    below = known.filter(pc.less_equal(known["draw"], min(ends))) if ends else known
    return pc.unique(below["uid"])


def _by_text(known: pa.Table) -> dict[str, int]:
    return dict(zip(known["text"].to_pylist(), known["topic"].to_pylist(), strict=True))

"""Write work directories without models: parts in the format of the stages."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from capmix.caption.fields import NEEDED as CAPTION_FIELDS
from capmix.engine.settings import EngineSettings
from capmix.mix.columns import columns_of
from capmix.mix.mix import Summary, mix
from capmix.mix.recipe import Recipe
from capmix.mix.settings import MixSettings
from capmix.mix.subset import SubsetRows
from capmix.models.index import FIELDS as SAMPLE_FIELDS
from capmix.pool import Shard
from capmix.score.stage import FIELDS as SCORE_FIELDS
from capmix.storage.marker import Counts, Marker
from capmix.storage.rows import DROPPED, FAILED, OK, Row, table_of
from capmix.storage.store import Store

SCORER = "clip"
ENGINE = {"name", "workers", "address"}
_SCRATCH = tempfile.TemporaryDirectory(prefix="capmix-tests-")


def fresh_folder() -> Path:
    """Return a new folder, removed after the tests.

    For property tests, whose examples share one tmp_path.
    """
    return Path(tempfile.mkdtemp(dir=_SCRATCH.name))


@dataclass(frozen=True)
class Made:
    """A sample: texts by source (several for a captioner), their scores, and its size."""

    uid: str
    raw: str | None = "raw text"
    raw_score: float | None = None
    captions: dict[str, list[str]] = field(default_factory=dict)
    scores: dict[str, list[float | None]] = field(default_factory=dict)
    size: tuple[int, int] = (100, 100)
    sha256: str = ""
    failed: bool = False


@dataclass
class Shards:
    """The part of a pool that mixing needs."""

    shards: list[Shard]
    has_images: bool = True


class HandMade:
    """Write parts of some shards to a folder, ready for mixing."""

    def __init__(self, folder: Path, shards: dict[str, list[Made]]):
        self.store = Store(str(folder))
        self.pool = Shards([Shard(name, "") for name in sorted(shards)])
        samples = [sample for shard in shards.values() for sample in shard]
        self.captioned = sorted({source for sample in samples for source in sample.captions})
        for name, here in shards.items():
            self._write(name, here)
        self.columns = columns_of(
            ["raw", *self.captioned], {SCORER: ["raw", *self.captioned]}, SCORER, {}
        )

    def mix(self, recipe: Recipe, output: str = "out", **settings: Any) -> Summary:
        engine = EngineSettings(**{n: settings.pop(n) for n in ENGINE & settings.keys()})
        made = MixSettings(**settings)
        pool: Any = self.pool
        return mix(self.store, pool, recipe, self.columns, made, output, engine)

    def rows(self, output: str = "out") -> list[dict[str, Any]]:
        batches = SubsetRows.pinned(self.store, output).batches()
        return [row for table in batches for row in table.to_pylist()]

    def _write(self, name: str, samples: list[Made]) -> None:
        rows = [
            Row(s.uid, s.uid, FAILED, "not_an_image", "broken")
            if s.failed
            else Row(s.uid, s.uid, values=(s.raw, *s.size, 1, s.sha256 or None, None))
            for s in samples
        ]
        self.put(f"samples/{name}", rows, SAMPLE_FIELDS)
        raw = [([s.raw], [s.raw_score]) for s in samples]
        self.put(f"scores/{SCORER}/raw/{name}", self._scores(samples, raw), SCORE_FIELDS)
        for source in self.captioned:
            texts = [s.captions.get(source, []) for s in samples]
            scores = [
                s.scores.get(source, [None] * len(s.captions.get(source, []))) for s in samples
            ]
            captions = [
                row
                for s, of_sample in zip(samples, texts, strict=True)
                for row in self._captions(s, of_sample)
            ]
            self.put(f"captions/{source}/{name}", captions, CAPTION_FIELDS)
            both = list(zip(texts, scores, strict=True))
            part = f"scores/{SCORER}/{source}/{name}"
            self.put(part, self._scores(samples, both), SCORE_FIELDS)

    def _captions(self, sample: Made, texts: Sequence[str]) -> list[Row]:
        if sample.failed or not texts:
            return [self._nothing(sample, "empty_caption")]
        made = enumerate(texts)
        return [Row(sample.uid, sample.uid, values=(k, t, "stop", [])) for k, t in made]

    def _scores(self, samples: list[Made], of: list[tuple[Any, Any]]) -> list[Row]:
        rows = []
        for sample, (texts, scores) in zip(samples, of, strict=True):
            if sample.failed or not texts:
                rows.append(self._nothing(sample, "no_text"))
                continue
            for k, score in enumerate(scores):
                row = Row(sample.uid, sample.uid, values=(k, score, False))
                rows.append(self._nothing(sample, "no_text") if score is None else row)
        return rows

    @staticmethod
    def _nothing(sample: Made, reason: str) -> Row:
        status = FAILED if sample.failed else DROPPED
        return Row(sample.uid, sample.uid, status, reason, reason)

    def put(self, part: str, rows: list[Row], fields: list[tuple[str, pa.DataType]]) -> None:
        ok = sum(row.status == OK for row in rows)
        counts = Counts(ok=ok)
        counts.dropped["none"] = len(rows) - ok
        with self.store.draft(part) as draft:
            draft.write_table(f"{part}.parquet", table_of(rows, fields))
            draft.commit(Marker({}, {}, len(rows), counts))

"""Caption a shard from its images: decoded in threads ahead of the model, captioned in batches."""

from collections.abc import Sequence
from typing import Any

from capmix.caption.captioner import Caption, ImageCaptioner
from capmix.caption.stage import DEFAULTS, FIELDS, asked_language, caption_rows, count_row
from capmix.engine.batches import BATCH_TIMEOUT, Batches, SampleError, batched
from capmix.engine.prefetch import BATCHES_AHEAD, Finished, prefetched
from capmix.engine.stage import PartWriter, Stage
from capmix.models.images import BadImageError
from capmix.models.index import bad_row, pool_inputs
from capmix.pool import BadSample, Pool, Sample, Shard
from capmix.storage.layout import captions_folder
from capmix.storage.rows import FAILED, Row, column_names, table_of, with_columns


def image_caption_stage(
    pool: Pool,
    captioner: ImageCaptioner,
    source: str,
    language: str | None = None,
    batch_timeout: float = BATCH_TIMEOUT,
) -> Stage:
    """The stage in which `captioner` writes the captions of `source` from the pool's images.

    A batch may take `batch_timeout` seconds; see Batches for what becomes of one that fails.
    """
    prompt = captioner.settings.get("prompt")
    batches = Batches(batch_timeout)

    def model(items: Sequence[tuple[Row, Any]]) -> list[list[Caption]]:
        uids = [row.uid or "" for row, _ in items]
        return captioner.caption([prepared for _, prepared in items], uids, source)

    def run_shard(shard: Shard, out: PartWriter) -> None:
        rows: list[Row] = []
        ahead = captioner.batch_size * BATCHES_AHEAD
        samples = prefetched(
            pool.read(shard, out.keys),
            lambda sample: _prepare(captioner, sample),
            captioner.workers,
            ahead,
        )
        for batch in batched(samples, captioner.batch_size):
            out.count_in(len(batch))
            ready = [_ready(sample, finished) for sample, finished in batch]
            good = [(row, prepared) for row, prepared in ready if row.reason is None]
            with out.busy.working(len(good)):
                found = batches.run(model, good)
            captions = iter(found)
            for row, _ in ready:
                result = row if row.reason else next(captions)
                made = [row] if row.reason else _rows(row, result, prompt, language)
                rows += made
                count_row(out, made[-1])
        out.write_table(table_of(rows, FIELDS))

    config = {"source": source, **captioner.settings, **asked_language(language)}
    folder = captions_folder(source)
    return Stage(
        f"caption {source}",
        folder,
        config,
        pool_inputs,
        run_shard,
        by_sample=True,
        defaults=DEFAULTS,
        columns=column_names(FIELDS),
        upgrade=with_columns(FIELDS),
        provenance=getattr(captioner, "provenance", {}),
    )


def _prepare(captioner: ImageCaptioner, sample: Sample | BadSample) -> Any:
    return captioner.prepare(sample) if isinstance(sample, Sample) else None


def _ready(sample: Sample | BadSample, finished: Finished[Any]) -> tuple[Row, Any]:
    """The sample's row so far, and what is prepared for the model where it is ok."""
    if isinstance(sample, BadSample):
        return bad_row(sample), None
    try:
        return Row(sample.uid, sample.key), finished.result()
    except (BadImageError, SampleError) as error:
        return Row(sample.uid, sample.key, FAILED, error.reason, str(error)), None


def _rows(row: Row, found: Any, prompt: str | None, language: str | None) -> list[Row]:
    if isinstance(found, SampleError):
        return [Row(row.uid, row.key, FAILED, found.reason, str(found))]
    return caption_rows(row, found, prompt, language)

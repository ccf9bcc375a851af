"""Caption a shard from its images: decoded in threads ahead of the model, captioned in batches."""

from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

from capmix.caption.captioner import Caption, ImageCaptioner
from capmix.caption.stage import (
    FIELDS,
    asked_language,
    caption_rows,
    captions_folder,
    count_row,
)
from capmix.embed import BATCHES_AHEAD, batched
from capmix.engine.busy import Busy
from capmix.engine.prefetch import prefetched
from capmix.engine.stage import PartWriter, Stage
from capmix.images import BadImageError
from capmix.pool import BadSample, Pool, Sample, Shard
from capmix.pool.index import bad_row, pool_inputs
from capmix.rows import FAILED, Row, table_of


class CaptionError(Exception):
    """One image could not be captioned. `reason` is a short word to count by."""

    def __init__(self, reason: str, detail: str):
        super().__init__(detail)
        self.reason = reason


def image_caption_stage(
    pool: Pool,
    captioner: ImageCaptioner,
    source: str,
    busy: Busy,
    language: str | None = None,
) -> Stage:
    """The stage in which `captioner` writes the captions of `source` from the pool's images."""
    prompt = captioner.settings.get("prompt")

    def run_shard(shard: Shard, out: PartWriter) -> None:
        rows: list[Row] = []
        ahead = captioner.batch_size * BATCHES_AHEAD
        samples = prefetched(
            pool.read(shard), lambda sample: _prepare(captioner, sample), captioner.workers, ahead
        )
        for batch in batched(samples, captioner.batch_size):
            out.count_in(len(batch))
            ready = [_ready(sample, future) for sample, future in batch]
            good = [(row, prepared) for row, prepared in ready if row.reason is None]
            with busy.working(len(good)):
                found = _caption_all(captioner, good, source)
            captions = iter(found)
            for row, _ in ready:
                result = row if row.reason else next(captions)
                made = [row] if row.reason else _rows(row, result, prompt, language)
                rows += made
                count_row(out, made[-1])
        out.write_table(table_of(rows, FIELDS))

    config = {"source": source, **captioner.settings, **asked_language(language)}
    return Stage(f"caption {source}", captions_folder(source), config, pool_inputs, run_shard)


def _prepare(captioner: ImageCaptioner, sample: Sample | BadSample) -> Any:
    return captioner.prepare(sample) if isinstance(sample, Sample) else None


def _ready(sample: Sample | BadSample, future: "Future[Any]") -> tuple[Row, Any]:
    """The sample's row so far, and what is prepared for the model where it is ok."""
    if isinstance(sample, BadSample):
        return bad_row(sample), None
    try:
        return Row(sample.uid, sample.key), future.result()
    except (BadImageError, CaptionError) as error:
        return Row(sample.uid, sample.key, FAILED, error.reason, str(error)), None


def _caption_all(
    captioner: ImageCaptioner, items: Sequence[tuple[Row, Any]], source: str
) -> list[list[Caption] | CaptionError]:
    """Captions of every item; a failing batch is split until what fails stands alone."""
    if not items:
        return []
    try:
        uids = [row.uid or "" for row, _ in items]
        return list(captioner.caption([prepared for _, prepared in items], uids, source))
    except CaptionError as error:
        failure = error
    except (RuntimeError, ValueError, IndexError) as error:
        failure = CaptionError("model_error", f"{type(error).__name__}: {error}"[:500])
    if len(items) == 1:
        return [failure]
    half = len(items) // 2
    first = _caption_all(captioner, items[:half], source)
    return first + _caption_all(captioner, items[half:], source)


def _rows(row: Row, found: Any, prompt: str | None, language: str | None) -> list[Row]:
    if isinstance(found, CaptionError):
        return [Row(row.uid, row.key, FAILED, found.reason, str(found))]
    return caption_rows(row, found, prompt, language)

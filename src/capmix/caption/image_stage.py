"""Caption a shard from its images: decode in threads ahead of the model, caption in batches."""

import hashlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from capmix.caption.captioner import Caption, ImageCaptioner
from capmix.caption.fields import DEFAULTS, FIELDS, NEEDED
from capmix.caption.reuse import CaptionReuse, image_hash
from capmix.caption.stage import asked_language, caption_rows, count_row
from capmix.engine.batches import BATCH_TIMEOUT, Batches, SampleError, batched
from capmix.engine.prefetch import BATCHES_AHEAD, Finished, prefetched
from capmix.engine.stage import PartWriter, Stage
from capmix.models.device import alone_on_its_core
from capmix.models.images import BadImageError
from capmix.models.index import bad_row, pool_inputs
from capmix.pool import BadSample, Pool, Sample, Shard
from capmix.pool.selection import Selection
from capmix.storage.layout import captions_folder
from capmix.storage.rows import FAILED, Row, column_names, table_of, with_columns
from capmix.storage.store import Store

# Raised by image processors for images of unusual shapes. They fail one sample; others end the run.
IMAGE_ERRORS = (TypeError, ValueError, ArithmeticError, LookupError, AttributeError, RuntimeError)


@dataclass(frozen=True)
class _Ready:
    """A preprocessed image.

    `kept` are its existing captions, `draw_name` seeds the random draws, `image` is its hash.
    """

    prepared: Any
    kept: list[Caption]
    draw_name: str
    image: int
    failed: BadImageError | SampleError | None = None


def image_caption_stage(
    pool: Pool,
    captioner: ImageCaptioner,
    source: str,
    language: str | None = None,
    batch_timeout: float = BATCH_TIMEOUT,
    selection: Selection | None = None,
    store: Store | None = None,
) -> Stage:
    """Return the stage in which `captioner` writes the captions of `source` from the pool's images.

    A batch may take up to `batch_timeout` seconds; see Batches for how failed batches are handled.
    Images of samples outside `selection` are not read. With `store`, captions of unchanged images
    are kept (reuse.py); `selection` requires `store`.
    """
    prompt = captioner.settings.get("prompt")
    batches = Batches(batch_timeout)
    model, prepare = _by_first(captioner, source), _preparing(captioner)

    def inputs(shard: Shard) -> dict[str, str]:
        return pool_inputs(shard) | (selection.inputs(shard.name) if selection else {})

    def run_shard(shard: Shard, out: PartWriter) -> None:
        rows: list[Row] = []
        samples = prefetched(
            _to_do(pool, shard, out),
            lambda sample: prepare(sample, out.kept),
            captioner.workers,
            captioner.batch_size * BATCHES_AHEAD,
            alone_on_its_core(),
        )
        for batch in batched(samples, captioner.batch_size):
            out.count_in(len(batch))
            ready = [_ready(sample, finished) for sample, finished in batch]
            good = [one for _, one in ready if one is not None and one.failed is None]
            with out.busy.working(len(good)):
                found = iter(batches.run(model, good))
            for row, one in ready:
                made = [row]
                if one is not None:
                    made = _rows(row, one, one.failed or next(found), prompt, language)
                rows += made
                count_row(out, made[-1])
        out.write_table(table_of(rows, FIELDS))

    config = {"source": source, **captioner.settings, **asked_language(language)}
    folder, image_only = captions_folder(source), getattr(captioner, "of_image_alone", False)
    reuse = CaptionReuse(store, pool, source, config, selection, image_only) if store else None
    return Stage(
        f"caption {source}",
        folder,
        config,
        inputs,
        run_shard,
        by_sample=True,
        defaults=DEFAULTS,
        columns=column_names(NEEDED),
        upgrade=with_columns(FIELDS),
        provenance=getattr(captioner, "provenance", {}),
        reuse=reuse,
    )


def _to_do(pool: Pool, shard: Shard, out: PartWriter) -> Iterator[Sample | BadSample]:
    """Yield the requested samples."""
    if out.keys is not None and not out.keys:
        return
    for sample in pool.read(shard, out.keys):
        if isinstance(sample, Sample) or not out.is_known_bad(sample.key, sample.reason):
            yield sample


def _by_first(
    captioner: ImageCaptioner, source: str
) -> Callable[[Sequence[_Ready]], list[list[Caption]]]:
    """Return the model as a function of a batch that writes the missing captions of each image.

    The images of a batch may have different numbers of existing captions.
    """
    takes_first = _takes_first(captioner.caption)

    def model(items: Sequence[_Ready]) -> list[list[Caption]]:
        found: list[list[Caption]] = [[] for _ in items]
        for first in sorted({len(one.kept) for one in items}):
            places = [place for place, one in enumerate(items) if len(one.kept) == first]
            prepared = [items[place].prepared for place in places]
            names = [items[place].draw_name for place in places]
            if first and takes_first:
                made = captioner.caption(prepared, names, source, first=first)
            else:
                made = [one[first:] for one in captioner.caption(prepared, names, source)]
            for place, captions in zip(places, made, strict=True):
                found[place] = captions
        return found

    return model


def _takes_first(method: Callable[..., Any]) -> bool:
    return "first" in inspect.signature(method).parameters


def _preparing(
    captioner: ImageCaptioner,
) -> Callable[[Sample | BadSample, Mapping[str, list[Caption]]], _Ready | None]:
    """Return the preprocessing as a function of a sample and the existing captions by key."""
    takes_first = _takes_first(captioner.prepare)

    def prepare(sample: Sample | BadSample, kept: Mapping[str, list[Caption]]) -> _Ready | None:
        if isinstance(sample, BadSample):
            return None
        captions = kept.get(sample.key, [])
        options = {"first": len(captions)} if captions and takes_first else {}
        failed: BadImageError | SampleError | None = None
        prepared = None
        try:
            prepared = captioner.prepare(sample, **options)
        except (BadImageError, SampleError) as error:
            failed = error
        except IMAGE_ERRORS as error:
            failed = SampleError("model_error", f"{type(error).__name__}: {error}")
        sha256 = hashlib.sha256(sample.image).hexdigest()
        return _Ready(prepared, captions, sample.drawn_by(sha256), image_hash(sha256), failed)

    return prepare


def _ready(
    sample: Sample | BadSample, finished: Finished[_Ready | None]
) -> tuple[Row, _Ready | None]:
    """Return the sample's row, and its preprocessed image if the sample is readable."""
    if isinstance(sample, BadSample):
        return bad_row(sample), None
    try:
        one = finished.result()
    except BadImageError as error:
        return Row(sample.uid, sample.key, FAILED, error.reason, str(error)), None
    return Row(sample.uid, sample.key), one


def _rows(row: Row, one: _Ready, found: Any, prompt: str | None, language: str | None) -> list[Row]:
    if not isinstance(found, SampleError | BadImageError):
        return caption_rows(row, [*one.kept, *found], prompt, language, one.image)
    failed = Row(row.uid, row.key, FAILED, found.reason, str(found))
    if not any(caption.text for caption in one.kept):
        return [failed]
    return [*caption_rows(row, one.kept, prompt, language, one.image), failed]

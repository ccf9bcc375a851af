"""Caption a shard from its images: decode in threads ahead of the model, caption in batches."""

import inspect
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from capmix.caption.captioner import Caption, ImageCaptioner
from capmix.caption.fields import DEFAULTS, FIELDS, NEEDED
from capmix.caption.partial import (
    HUNG_BATCH,
    CaptionEntry,
    captions_entry,
    earlier_entries,
    failure_entry,
)
from capmix.caption.reuse import CaptionReuse, image_hash
from capmix.caption.stage import asked_language, caption_rows, count_row
from capmix.engine.batches import BATCH_TIMEOUT, MODEL_HUNG, Batches, SampleError
from capmix.engine.prefetch import BATCHES_AHEAD, Finished, prefetched
from capmix.engine.stage import PartWriter, Stage
from capmix.models.images import BadImageError
from capmix.models.index import bad_row, pool_inputs
from capmix.pool import BadSample, ImagePool, Sample, Shard
from capmix.pool.selection import Selection
from capmix.settings.counted import counted
from capmix.storage.layout import captions_folder
from capmix.storage.rows import FAILED, Row, column_names, table_of, with_columns
from capmix.storage.store import Store

log = logging.getLogger(__name__)

_Found = list[Caption] | BadImageError | SampleError

# Raised by image processors for images of unusual shapes. They fail one sample; others end the run.
IMAGE_ERRORS = (TypeError, ValueError, ArithmeticError, LookupError, AttributeError, RuntimeError)


@dataclass(slots=True)
class _Ready:
    """A preprocessed image, `prepared` for the model unless its result is `found` without it.

    `kept` are its existing captions, `draw_name` seeds the random draws, `image` is the first half
    of its sha256. `found` is a failure, or what an earlier run has left in the partial part
    (`is_resumed`). `is_alone` is whether the model must get this image alone.
    """

    key: str
    uid: str
    kept: list[Caption]
    draw_name: str
    image: str
    prepared: Any = None
    found: _Found | None = None
    is_resumed: bool = False
    is_alone: bool = False

    def entry(self, found: _Found) -> CaptionEntry:
        """Return the entry of the partial part."""
        name = self.key, self.uid, self.image
        if isinstance(found, BadImageError | SampleError):
            return failure_entry(*name, found.reason, str(found))
        return captions_entry(*name, [*self.kept, *found])


def image_caption_stage(
    pool: ImagePool,
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
        earlier = earlier_entries(out)
        if done := sum(one.is_done for one in earlier.values()):
            done_before = counted(done, "image")
            log.info("caption %s: shard %s resumes after %s", source, shard.name, done_before)
        samples = prefetched(
            _to_do(pool, shard, out),
            lambda sample: prepare(sample, out.kept, earlier),
            captioner.workers,
            captioner.batch_size * BATCHES_AHEAD,
        )
        ready = (_ready(sample, finished) for sample, finished in samples)
        for batch in _batches(ready, captioner.batch_size):
            out.count_in(len(batch))
            todo = [one for _, one in batch if one is not None and one.found is None]
            with out.busy.working(len(todo)):
                made = _captioned(batches, model, todo, out)
            new: list[CaptionEntry] = []
            for row, one in batch:
                of_row = [row]
                if one is not None:
                    found = made[one.key] if one.found is None else one.found
                    of_row = _rows(row, one, found, prompt, language)
                    if not one.is_resumed:
                        new.append(one.entry(found))
                    elif of_row[-1].status != FAILED:
                        out.resumed += 1
                rows += of_row
                count_row(out, of_row[-1])
            out.partial.add(new)
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


def _to_do(pool: ImagePool, shard: Shard, out: PartWriter) -> Iterator[Sample | BadSample]:
    """Yield the requested samples."""
    if out.keys is not None and not out.keys:
        return
    for sample in pool.read(shard, out.keys):
        if isinstance(sample, Sample) or not out.is_known_bad(sample.key, sample.reason):
            yield sample


def _batches(
    samples: Iterable[tuple[Row, _Ready | None]], size: int
) -> Iterator[list[tuple[Row, _Ready | None]]]:
    """Yield lists with `size` images for the model and the samples among them that do not need it.

    Lists without an image for the model have `size` samples. The last list may have fewer.
    """
    batch: list[tuple[Row, _Ready | None]] = []
    todo = 0
    for row, one in samples:
        batch.append((row, one))
        todo += one is not None and one.found is None
        if todo == size or (not todo and len(batch) == size):
            yield batch
            batch, todo = [], 0
    if batch:
        yield batch


def _captioned(
    batches: Batches,
    model: Callable[[Sequence[_Ready]], list[list[Caption]]],
    items: Sequence[_Ready],
    out: PartWriter,
) -> dict[str, list[Caption] | SampleError]:
    """Return the results of the model by key."""

    def on_hang(hung: Sequence[_Ready]) -> None:
        reason = HUNG_BATCH if len(hung) > 1 else MODEL_HUNG
        detail = f"no answer within {2 * batches.seconds:g} s (--batch-timeout); process ended"
        names = ((one.key, one.uid, one.image) for one in hung)
        out.partial.add([failure_entry(*name, reason, detail) for name in names])
        out.partial.close()

    together = [one for one in items if not one.is_alone]
    found: dict[str, list[Caption] | SampleError] = {}
    for group in [together, *([one] for one in items if one.is_alone)]:
        made = batches.run(model, group, on_hang)
        found |= {one.key: captions for one, captions in zip(group, made, strict=True)}
    return found


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
) -> Callable[
    [Sample | BadSample, Mapping[str, list[Caption]], Mapping[str, CaptionEntry]], _Ready | None
]:
    """Return the preprocessing as a function of a sample, the existing captions by key, and the
    entries of the partial part by key."""
    takes_first = _takes_first(captioner.prepare)

    def prepare(
        sample: Sample | BadSample,
        kept: Mapping[str, list[Caption]],
        earlier: Mapping[str, CaptionEntry],
    ) -> _Ready | None:
        if isinstance(sample, BadSample):
            return None
        captions = kept.get(sample.key, [])
        image = sample.sha256[:16]
        one = _Ready(sample.key, sample.uid, captions, sample.draw_name, image)
        entry = earlier.get(sample.key)
        if entry is not None and entry[:3] == (sample.key, sample.uid, image):
            if entry.is_done:
                one.found, one.is_resumed = entry.result(len(captions)), True
                return one
            one.is_alone = True
        options = {"first": len(captions)} if captions and takes_first else {}
        try:
            one.prepared = captioner.prepare(sample, **options)
        except (BadImageError, SampleError) as error:
            one.found = error
        except IMAGE_ERRORS as error:
            one.found = SampleError("model_error", f"{type(error).__name__}: {error}")
        return one

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


def _rows(
    row: Row, one: _Ready, found: _Found, prompt: str | None, language: str | None
) -> list[Row]:
    image = image_hash(one.image)
    if not isinstance(found, SampleError | BadImageError):
        return caption_rows(row, [*one.kept, *found], prompt, language, image)
    failed = Row(row.uid, row.key, FAILED, found.reason, str(found))
    if not any(caption.text for caption in one.kept):
        return [failed]
    return [*caption_rows(row, one.kept, prompt, language, image), failed]

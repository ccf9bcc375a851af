"""Caption a shard from its images: decode in threads ahead of the model, caption in batches."""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from capmix.caption.captioner import Caption, ImageCaptioner
from capmix.caption.fields import DEFAULTS, FIELDS, NEEDED
from capmix.caption.reuse import CaptionReuse, image_hash
from capmix.caption.stage import asked_language, caption_rows, count_row
from capmix.caption.stream import StreamedImage, streamed, takes_first
from capmix.engine.batches import BATCH_TIMEOUT, Batches, SampleError
from capmix.engine.prefetch import BATCHES_AHEAD, Finished
from capmix.engine.read_ahead import ReadAhead, read_ahead
from capmix.engine.stage import PartWriter, Stage
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
    prepare = _preparing(captioner)

    def inputs(shard: Shard) -> dict[str, str]:
        return pool_inputs(shard) | (selection.inputs(shard.name) if selection else {})

    held = captioner.workers, captioner.batch_size * BATCHES_AHEAD
    whole = ReadAhead(lambda shard: pool.read(shard), lambda sample: prepare(sample, {}), *held)

    def run_shard(shard: Shard, out: PartWriter) -> None:
        samples = whole.of(shard)
        if out.keys is not None:
            to_do = _to_do(pool, shard, out)
            samples = read_ahead(to_do, lambda sample: prepare(sample, out.kept), *held)
        found: dict[int, list[Row]] = {}

        def add(place: int, row: Row, one: _Ready | None, result: Any) -> None:
            made = [row] if one is None else _rows(row, one, result, prompt, language)
            found[place] = made
            count_row(out, made[-1])

        def images() -> Iterator[StreamedImage]:
            for place, (sample, finished) in enumerate(samples):
                out.count_in()
                row, one = _ready(sample, finished)
                if one is None or one.failed is not None:
                    add(place, row, one, one and one.failed)
                else:
                    about = place, row, one
                    yield StreamedImage(one.prepared, one.draw_name, len(one.kept), about)

        for image in streamed(captioner, images(), source, batches, out.busy):
            out.busy.images += 1
            place, row, one = image.about
            add(place, row, one, image.error or image.captions)
        rows = [row for place in sorted(found) for row in found[place]]
        out.write_table(table_of(rows, FIELDS))

    config = {"source": source, **captioner.settings, **asked_language(language)}
    folder, image_only = captions_folder(source), getattr(captioner, "of_image_alone", False)
    reuse = CaptionReuse(store, pool, source, config, selection, image_only) if store else None

    def follow(shard: Shard | None) -> None:
        is_whole = shard is not None and (reuse is None or reuse.needs_all(shard))
        whole.follow(shard if is_whole else None)

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
        follow=None if takes_first(captioner.prepare) else follow,
    )


def _to_do(pool: Pool, shard: Shard, out: PartWriter) -> Iterator[Sample | BadSample]:
    """Yield the requested samples of a shard that is captioned in part."""
    if not out.keys:
        return
    for sample in pool.read(shard, out.keys):
        if isinstance(sample, Sample) or not out.is_known_bad(sample.key, sample.reason):
            yield sample


def _preparing(
    captioner: ImageCaptioner,
) -> Callable[[Sample | BadSample, Mapping[str, list[Caption]]], _Ready | None]:
    """Return the preprocessing as a function of a sample and the existing captions by key."""
    has_first = takes_first(captioner.prepare)

    def prepare(sample: Sample | BadSample, kept: Mapping[str, list[Caption]]) -> _Ready | None:
        if isinstance(sample, BadSample):
            return None
        captions = kept.get(sample.key, [])
        options = {"first": len(captions)} if captions and has_first else {}
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

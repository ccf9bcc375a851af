"""Caption a shard from its images: decode in threads ahead of the model, caption in batches."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from capmix.caption.captioner import Caption, ImageCaptioner
from capmix.caption.fields import DEFAULTS, FIELDS, NEEDED
from capmix.caption.partial import (
    SAMPLE_ERRORS,
    CaptionEntry,
    captions_entry,
    earlier_entries,
    failure_entry,
    note_hang,
    of_sample_error,
)
from capmix.caption.prompts import MISSING_TEXT, prompt_openings
from capmix.caption.reuse import CaptionReuse, image_hash
from capmix.caption.stage import asked_language, caption_rows, count_row
from capmix.caption.stream import Running, StreamedImage, streamed, takes_first
from capmix.engine.batches import BATCH_TIMEOUT, Batches, SampleError
from capmix.engine.prefetch import BATCHES_AHEAD, Finished
from capmix.engine.read_ahead import ReadAhead, read_ahead
from capmix.engine.stage import PartWriter, Stage
from capmix.models.device import alone_on_its_core
from capmix.models.images import BadImageError
from capmix.models.index import bad_row, pool_inputs
from capmix.pool import BadSample, ImagePool, Sample, Shard
from capmix.pool.selection import Selection
from capmix.storage.layout import captions_folder
from capmix.storage.rows import DROPPED, FAILED, Row, column_names, table_of, with_columns
from capmix.storage.store import Store

_Found = list[Caption] | BadImageError | SampleError
_Prepared = tuple[Sample | BadSample, Finished["_Ready | None"]]


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
    prompt = prompt_openings(captioner.settings)
    batches = Batches(batch_timeout)
    prepare = _preparing(captioner)

    def inputs(shard: Shard) -> dict[str, str]:
        return pool_inputs(shard) | (selection.inputs(shard.name) if selection else {})

    held = captioner.workers, captioner.batch_size * BATCHES_AHEAD, alone_on_its_core()

    def needs_all(shard: Shard) -> bool:
        return reuse is None or reuse.needs_all(shard)

    whole: ReadAhead[Shard, Sample | BadSample, _Ready | None] = ReadAhead(
        lambda shard: pool.read(shard), lambda sample: prepare(sample, {}, {}), *held, needs_all
    )

    def samples_of(shard: Shard, out: PartWriter) -> Iterator[_Prepared]:
        earlier = earlier_entries(out, f"caption {source}: shard {shard.name}", "image")
        if out.keys is None and not earlier:
            return whole.of(shard)
        whole.close()  # it may have begun to read this shard
        to_do = _to_do(pool, shard, out)
        return read_ahead(to_do, lambda sample: prepare(sample, out.kept, earlier), *held)

    def run_shard(shard: Shard, out: PartWriter) -> None:
        rows: dict[int, list[Row]] = {}
        new: list[CaptionEntry] = []  # for the partial part

        def add(place: int, row: Row, one: _Ready | None, found: _Found | None) -> None:
            of_sample = [row]
            if one is not None:
                assert found is not None
                of_sample = _rows(row, one, found, prompt, language)
                if not one.is_resumed:
                    new.append(one.entry(found))
                elif of_sample[-1].status != FAILED:
                    out.resumed += 1
            rows[place] = of_sample
            count_row(out, of_sample[-1])

        def images() -> Iterator[StreamedImage]:
            for place, (sample, finished) in enumerate(samples_of(shard, out)):
                out.count_in()
                row, one = _ready(sample, finished)
                if one is None or one.found is not None:
                    add(place, row, one, one.found if one else None)
                else:
                    yield StreamedImage(
                        one.prepared, one.draw_name, len(one.kept), one.is_alone, (place, row, one)
                    )

        running = Running(
            source, batches, out.busy, lambda hung: note_hang(out, batches, map(_name, hung))
        )
        for some in streamed(captioner, images(), running):
            out.busy.images += len(some)
            for image in some:
                place, row, one = image.about
                add(place, row, one, image.error or image.captions)
            out.partial.add(new)
            new.clear()
        if len(rows) != out.rows_in:
            raise RuntimeError(f"the captioner returned {len(rows)} of {out.rows_in} images")
        out.write_table(table_of([row for place in sorted(rows) for row in rows[place]], FIELDS))

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
        # `prepare` of such a captioner (server, vLLM) starts requests; another worker would start
        # them again.
        ahead=None if takes_first(captioner.prepare) else whole,
    )


def _to_do(pool: ImagePool, shard: Shard, out: PartWriter) -> Iterator[Sample | BadSample]:
    """Yield the requested samples."""
    if out.keys is not None and not out.keys:
        return
    for sample in pool.read(shard, out.keys):
        if isinstance(sample, Sample) or not out.is_known_bad(sample.key, sample.reason):
            yield sample


def _name(image: StreamedImage) -> tuple[str, str, str]:
    one: _Ready = image.about[-1]
    return one.key, one.uid, one.image


def _preparing(
    captioner: ImageCaptioner,
) -> Callable[
    [Sample | BadSample, Mapping[str, list[Caption]], Mapping[str, CaptionEntry]], _Ready | None
]:
    """Return the preprocessing as a function of a sample, the existing captions by key, and the
    entries of the partial part by key."""
    has_first = takes_first(captioner.prepare)

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
        options = {"first": len(captions)} if captions and has_first else {}
        try:
            one.prepared = captioner.prepare(sample, **options)
        except (BadImageError, SampleError) as error:
            one.found = error
        except SAMPLE_ERRORS as error:
            one.found = of_sample_error(error)
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
    row: Row,
    one: _Ready,
    found: _Found,
    prompt: str | Sequence[str | None] | None,
    language: str | None,
) -> list[Row]:
    image = image_hash(one.image)
    if not isinstance(found, SampleError | BadImageError):
        return caption_rows(row, [*one.kept, *found], prompt, language, image)
    status = DROPPED if found.reason == MISSING_TEXT else FAILED
    failed = Row(row.uid, row.key, status, found.reason, str(found))
    if not any(caption.text for caption in one.kept):
        return [failed]
    return [*caption_rows(row, one.kept, prompt, language, image), failed]

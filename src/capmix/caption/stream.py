"""Caption a stream of images, which may finish in any order.

A captioner with slots (backends/slots.py) takes the next image as soon as a caption ends. All
others get batches.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from capmix.caption.captioner import Caption, ImageCaptioner
from capmix.engine.batches import Batches, SampleError, batched
from capmix.engine.busy import Busy


@dataclass(eq=False)
class StreamedImage:
    """An image to caption: what `prepare` returned, and the name that seeds its draws.

    Captions before number `first` exist. The model must get an image that `is_alone` alone. The
    image is finished when it has its further captions in `written`, by number, or an `error`.
    `about` belongs to the caller.
    """

    prepared: Any
    name: str
    first: int = 0
    is_alone: bool = False
    about: Any = None
    written: dict[int, Caption] = field(default_factory=dict)
    error: SampleError | None = None

    @property
    def captions(self) -> list[Caption]:
        return [self.written[number] for number in sorted(self.written)]

    def finish(self, captions: Sequence[Caption] | SampleError) -> None:
        """Record all further captions, or why they could not be written."""
        if isinstance(captions, SampleError):
            self.error = captions
        else:
            self.written = dict(enumerate(captions, self.first))


@dataclass(frozen=True)
class Running:
    """What a stream of images of one shard runs with.

    `batches` limits the time of a batch and isolates failing images; `busy` gets the model's time.
    If the model hangs and cannot be interrupted, `on_hang` gets its images before the process ends.
    """

    source: str
    batches: Batches
    busy: Busy
    on_hang: Callable[[Sequence[StreamedImage]], None] = lambda _: None


def streamed(
    captioner: ImageCaptioner, images: Iterator[StreamedImage], running: Running
) -> Iterator[list[StreamedImage]]:
    """Yield each image once, in a list with others that are finished at the same time."""
    if hasattr(captioner, "stream"):
        yield from captioner.stream(images, running)
    else:
        yield from in_batches(captioner, images, running)


def in_batches(
    captioner: ImageCaptioner, images: Iterator[StreamedImage], running: Running
) -> Iterator[list[StreamedImage]]:
    """Yield the images, in order, captioned in batches."""
    for some in batched(images, captioner.batch_size):
        together = [image for image in some if not image.is_alone]
        for group in [together, *([image] for image in some if image.is_alone)]:
            caption_batch(captioner, group, running)
        yield some


def caption_batch(
    captioner: ImageCaptioner, images: Sequence[StreamedImage], running: Running
) -> None:
    """Finish the images of one batch."""

    def model(some: Sequence[StreamedImage]) -> list[list[Caption]]:
        return captions_of(captioner, some, running.source)

    with running.busy.working(0):
        found = running.batches.run(model, images, running.on_hang)
    for image, captions in zip(images, found, strict=True):
        image.finish(captions)


def captions_of(
    captioner: ImageCaptioner, images: Sequence[StreamedImage], source: str
) -> list[list[Caption]]:
    """Return the further captions of each image from `captioner.caption`.

    The images may have different numbers of existing captions.
    """
    found: dict[int, list[Caption]] = {}
    for first in sorted({image.first for image in images}):
        places = [place for place, image in enumerate(images) if image.first == first]
        prepared = [images[place].prepared for place in places]
        names = [images[place].name for place in places]
        if first and takes_first(captioner.caption):
            made = captioner.caption(prepared, names, source, first=first)
        else:
            made = [one[first:] for one in captioner.caption(prepared, names, source)]
        found.update(zip(places, made, strict=True))
    return [found[place] for place in range(len(images))]


def takes_first(method: Callable[..., Any]) -> bool:
    """Return whether a captioner's method takes the number of existing captions."""
    return "first" in inspect.signature(method).parameters

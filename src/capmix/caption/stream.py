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

    Captions before number `first` exist. The image is finished when it has its further captions in
    `written`, by number, or an `error`. `about` belongs to the caller.
    """

    prepared: Any
    name: str
    first: int = 0
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


def streamed(
    captioner: ImageCaptioner,
    images: Iterator[StreamedImage],
    source: str,
    batches: Batches,
    busy: Busy,
) -> Iterator[StreamedImage]:
    """Yield each image once, as soon as it is finished.

    `batches` limits the time of a batch and isolates failing images; `busy` gets the model's time.
    """
    if hasattr(captioner, "stream"):
        yield from captioner.stream(images, source, batches, busy)
    else:
        yield from in_batches(captioner, images, source, batches, busy)


def in_batches(
    captioner: ImageCaptioner,
    images: Iterator[StreamedImage],
    source: str,
    batches: Batches,
    busy: Busy,
) -> Iterator[StreamedImage]:
    """Yield the images, in order, captioned in batches."""
    for some in batched(images, captioner.batch_size):
        with busy.working(0):
            found = batches.run(lambda part: captions_of(captioner, part, source), some)
        for image, captions in zip(some, found, strict=True):
            image.finish(captions)
            yield image


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

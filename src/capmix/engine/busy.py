"""How much of the time the model worked: the rest it waited for images, texts or the disk."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Busy:
    """Seconds that the model worked and images that it saw, since this object was made."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.images = 0
        self._started = time.monotonic()

    @contextmanager
    def working(self, images: int) -> Iterator[None]:
        """The model works on `images` images within the block (0 where it reads their texts)."""
        started = time.monotonic()
        yield
        self.seconds += time.monotonic() - started
        self.images += images

    def rate(self) -> str:
        """Images per second of wall time."""
        return f"{self.images / (time.monotonic() - self._started):,.1f} images/s"

    def share(self) -> str:
        """The share of wall time in which the model worked."""
        return f"model busy {self.seconds / (time.monotonic() - self._started):.0%}"

"""Time that a model was busy; the rest of the time it waited for images, texts or the disk."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass
class Busy:
    """Seconds that the model was busy, and the number of images it processed."""

    seconds: float = 0.0
    images: int = 0

    @contextmanager
    def working(self, images: int) -> Iterator[None]:
        """Time a block in which the model processes `images` images (0 if it processes texts)."""
        started = time.monotonic()
        yield
        self.seconds += time.monotonic() - started
        self.images += images

    def add(self, other: "Busy") -> None:
        self.seconds += other.seconds
        self.images += other.images

"""How much of the time the model worked: the rest it waited for images, texts or the disk."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass
class Busy:
    """Seconds that the model worked, and images that it saw."""

    seconds: float = 0.0
    images: int = 0

    @contextmanager
    def working(self, images: int) -> Iterator[None]:
        """The model works on `images` images within the block (0 where it reads their texts)."""
        started = time.monotonic()
        yield
        self.seconds += time.monotonic() - started
        self.images += images

    def add(self, other: "Busy") -> None:
        self.seconds += other.seconds
        self.images += other.images

"""Show progress as a bar, plain lines or JSON, from a thread that also reports while work hangs."""

import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from dataclasses import dataclass
from typing import Any

from tqdm.auto import tqdm

from capmix.engine import messages
from capmix.settings.counted import plural

BAR_EVERY, JSON_EVERY = 0.5, 1.0  # seconds
PLAIN_EVERY, PLAIN_EVERY_LATER = 30.0, 300.0  # 1/60 of the elapsed time, within these bounds
WIDEST_BAR = 20  # characters


@dataclass(frozen=True)
class View:
    """Snapshot of the progress of some work.

    `done` and `total` are in units, `rate` in units per second, `eta` in seconds; None if unknown.
    `is_about` means that total and eta are estimates. An empty `unit` means that nothing is
    counted.
    """

    stage: str
    unit: str
    done: int = 0
    total: int | None = None
    rate: float | None = None
    eta: float | None = None
    ok: int = 0
    dropped: int = 0
    failed: int = 0
    is_about: bool = False

    def line(self) -> str:
        """Format as text: `caption blip2: 4,500 of 10,000 images (45%), 56 images/s, 1 min 38 s
        left, 2 failed`."""
        share = f" ({self.done / self.total:.0%})" if self.total else ""
        return f"{self.stage}: {self.counts(share)}" if self.unit else self.stage

    def counts(self, share: str = "") -> str:
        """Format as text without the stage, with `share` after the counts."""
        if not self.unit:
            return ""
        about = "about " if self.is_about else ""
        of = "" if self.total is None else f" of {about}{self.total:,}"
        parts = [f"{self.done:,}{of} {self._units}{share}"]
        if self.rate is not None:
            parts.append(rate_text(self.rate, self._units))
        if self.eta is not None:
            parts.append(f"{about}{duration(self.eta)} left")
        parts += [f"{self.dropped:,} dropped"] if self.dropped else []
        parts += [f"{self.failed:,} failed"] if self.failed else []
        return ", ".join(parts)

    @property
    def _units(self) -> str:
        return plural(self.unit)

    def fields(self, event: str, seconds: float) -> dict[str, Any]:
        """Return the JSON object that `--progress json` prints."""
        return {
            "event": event,
            "stage": self.stage,
            "unit": self.unit,
            "done": self.done,
            "total": self.total,
            "about": self.is_about,
            "rate": None if self.rate is None else round(self.rate, 3),
            "eta_s": None if self.eta is None else round(self.eta, 1),
            "ok": self.ok,
            "dropped": self.dropped,
            "failed": self.failed,
            "elapsed_s": round(seconds, 1),
        }


def rate_text(rate: float, units: str) -> str:
    """Format a rate, for example `56 images/s`; below 10 with two significant digits."""
    return f"{rate:,.0f} {units}/s" if rate >= 10 else f"{rate:.2g} {units}/s"


def duration(seconds: float) -> str:
    """Format a duration, for example `45 s`, `3 min 12 s` or `2 h 5 min`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, left = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {left} s"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    return f"{hours // 24} days {hours % 24} h"


def plain_waits(seconds: float) -> float:
    """Return the interval between plain lines, in seconds, after `seconds` of work.

    It grows with the elapsed time so that the logs of long runs stay short.
    """
    return min(max(PLAIN_EVERY, seconds / 60), PLAIN_EVERY_LATER)


class Display:
    """Context manager that shows progress while its block runs.

    `view` returns the overall progress, which bars and plain lines show; `views` returns the
    progress of each stage, which JSON prints. A bar is cleared at the end.
    """

    def __init__(self, view: Callable[[], View], views: Callable[[], list[View]] | None = None):
        self._view = view
        self._views = views or (lambda: [view()])
        self._form = messages.progress_form()
        self._started = time.monotonic()
        self._is_over = threading.Event()
        self._thread: threading.Thread | None = None
        self._bar: Any = None
        self._shown: dict[str, View] = {}

    def __enter__(self) -> "Display":
        if self._form == "json":
            for view in self._counted():
                self._shown[view.stage] = view
                messages.say_event(view.fields("start", 0.0))
        if self._form == "bar":
            self._bar = tqdm(total=1, leave=False, bar_format="{desc}", disable=False)
            self._draw()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        if self._thread is not None:
            self._thread.join()
        if self._bar is not None:
            self._draw()
            self._bar.close()
        if self._form == "json":
            for view in self._counted():
                messages.say_event(view.fields("end", self._seconds))

    def _counted(self) -> list[View]:
        return [view for view in self._views() if view.unit]

    @property
    def _seconds(self) -> float:
        return time.monotonic() - self._started

    def _run(self) -> None:
        every = {"bar": BAR_EVERY, "json": JSON_EVERY}.get(self._form, PLAIN_EVERY)
        next_plain = PLAIN_EVERY
        while not self._is_over.wait(min(every, max(0.01, next_plain - self._seconds))):
            if self._form == "bar":
                self._draw()
            elif self._form == "json":
                self._print_events()
            if self._seconds >= next_plain:
                self._say()
                next_plain = self._seconds + plain_waits(self._seconds)

    def _draw(self) -> None:
        view = self._view()
        text = view.counts() or f"{duration(self._seconds)} elapsed"
        bar = self._bar
        width = ""  # a notebook draws the bar itself
        if not messages.is_notebook():  # a pseudo-terminal may report a width of 0 columns
            bar.ncols, bar.nrows = shutil.get_terminal_size()
            room = bar.ncols - len(view.stage) - len(text) - 10
            width = f":{max(1, min(room, WIDEST_BAR))}"
        if bar.total != view.total:
            bar.reset(view.total)
        bar.total, bar.n = view.total, min(view.done, view.total or view.done)
        share = f"{{percentage:3.0f}}%|{{bar{width}}}| " if view.total else ""
        bar.bar_format = f"{{desc}}: {share}{text}"
        bar.set_description_str(view.stage, refresh=False)
        bar.refresh()

    def _say(self) -> None:
        view = self._view()
        line = view.line()
        if view.rate is None:
            line = f"{line}, {duration(self._seconds)} elapsed"
        messages.note(line)
        if self._form == "plain":
            messages.say(line)

    def _print_events(self) -> None:
        """Print the stages that have changed, and always the first one, as a heartbeat."""
        for number, view in enumerate(self._views()):
            if number == 0 or self._shown.get(view.stage) != view:
                self._shown[view.stage] = view
                messages.say_event(view.fields("progress", self._seconds))


class LoopProgress:
    """Progress of a loop over `total` units, of which `done` were already done at the start.

    Use it as a context manager and call `update`, or pass `work` and iterate over it.
    """

    def __init__(
        self,
        about: str,
        unit: str,
        total: int | None = None,
        work: Iterable[Any] | None = None,
        done: int = 0,
    ):
        self._about, self._unit, self._work = about, unit, work
        self._total = len(work) if total is None and isinstance(work, Sized) else total
        self._before = self._done = done
        self._first: tuple[float, int] | None = None
        self._display = Display(self._view)

    def __enter__(self) -> "LoopProgress":
        self._display.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._display.__exit__(*error)

    def __iter__(self) -> Iterator[Any]:
        with self:
            for one in self._work or ():
                yield one
                self.update(1)

    def update(self, units: int) -> None:
        """Add `units` to the finished units."""
        self._done += units
        # The rate excludes the time before the first update, such as loading a model.
        self._first = self._first or (time.monotonic(), self._done)

    def _view(self) -> View:
        rate = eta = None
        if self._first is not None and self._done > self._first[1]:
            rate = (self._done - self._first[1]) / max(time.monotonic() - self._first[0], 1e-6)
        if rate and self._total is not None:
            eta = max(0, self._total - self._done) / rate
        ok = self._done - self._before
        return View(self._about, self._unit, self._done, self._total, rate, eta, ok)


def progress(
    about: str,
    unit: str,
    total: int | None = None,
    work: Iterable[Any] | None = None,
    done: int = 0,
) -> LoopProgress:
    """Return a LoopProgress with these arguments."""
    return LoopProgress(about, unit, total, work, done)

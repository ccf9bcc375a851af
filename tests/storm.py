"""Fault injection for file systems: the n-th call of a kind fails like a real disk or network.

File operations are patched in Python, for a local disk (os.replace and similar functions) and for
an object store (an fsspec file system). A killed process cannot even clean up, so after a simulated
kill every later call fails as well, until the storm is over.
"""

import builtins
import contextlib
import errno
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

import capmix.storage.filesystem
import capmix.storage.store

# The faults of each kind of call.
WAYS = {
    "write": ("eio", "enospc", "torn", "killed", "slow"),
    "sync": ("eio", "enospc", "killed"),
    "rename": ("eio", "enospc", "lost", "killed", "killed after"),
    "remove": ("eio", "killed", "killed after"),
    "read": ("eio", "killed", "slow"),
    "list": ("eio", "killed", "stale"),
}


class Killed(BaseException):
    """Simulates that the process was killed."""


@dataclass
class Fault:
    """The fault of the `number`-th call (from 0) of a kind."""

    call: str
    way: str
    number: int


class Storm:
    """Count calls and inject one fault. `happened` is whether it was injected."""

    def __init__(self, fault: Fault | None):
        self.fault, self.seen, self.is_dead, self.happened = fault, 0, False, False

    def way(self, call: str) -> str:
        """Return the fault of this call, or raise the error of a failing call."""
        if self.is_dead:
            raise Killed
        fault = self.fault
        if fault is None or fault.call != call:
            return ""
        self.seen += 1
        if self.seen - 1 != fault.number:
            return ""
        self.happened = True
        if fault.way == "eio":
            raise OSError(errno.EIO, "Input/output error")
        if fault.way == "enospc":
            raise OSError(errno.ENOSPC, "No space left on device")
        if fault.way == "killed":
            self.die()
        if fault.way == "slow":
            time.sleep(0.02)
        return fault.way

    def die(self) -> None:
        self.is_dead = True
        raise Killed

    def around(self, call: str, real: Callable[..., Any]) -> Callable[..., Any]:
        """Call `real`, unless the fault applies."""

        def patched(*arguments: Any, **named: Any) -> Any:
            way = self.way(call)
            if way == "lost":
                with contextlib.suppress(OSError):
                    os.remove(arguments[0])
                return None
            made = real(*arguments, **named)
            if way == "killed after":
                self.die()
            return made

        return patched


class _Torn:
    """A file whose write silently stores only half of the data."""

    def __init__(self, stream: Any, storm: Storm):
        self._stream, self._storm = stream, storm

    def __enter__(self) -> "_Torn":
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, data: Any) -> int:
        whole = bytes(data)
        if self._storm.way("write") == "torn":
            half = len(whole) // 2
            self._stream.write(whole[:half] + bytes(len(whole) - half))
        else:
            self._stream.write(whole)
        return len(whole)


@contextlib.contextmanager
def on_disk(storm: Storm) -> Iterator[None]:
    """Within the block, inject faults into file operations."""
    real_open, real_read = builtins.open, Path.read_bytes

    def opening(path: Any, mode: str = "r", *more: Any, **named: Any) -> Any:
        storm.way("write" if "w" in mode else "read")
        stream = real_open(path, mode, *more, **named)
        return _Torn(stream, storm) if "w" in mode else stream

    def reading(path: Path) -> bytes:
        storm.way("read")
        return real_read(path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "replace", storm.around("rename", os.replace))
        patch.setattr(os, "remove", storm.around("remove", os.remove))
        patch.setattr(os, "fsync", storm.around("sync", os.fsync))
        patch.setattr(Path, "read_bytes", reading)
        patch.setattr(capmix.storage.store, "open", opening, raising=False)
        patch.setattr(capmix.storage.filesystem, "FIRST_WAIT", 0.001)
        yield


class StormyStore(MemoryFileSystem):
    """An in-memory object store that fails."""

    protocol = "memory"
    store: dict[str, Any] = {}  # noqa: RUF012
    pseudo_dirs = [""]  # noqa: RUF012
    storm = Storm(None)
    listed: dict[str, Any] = {}  # noqa: RUF012

    def put_file(self, lpath: str, rpath: str, **named: Any) -> None:
        way = self.storm.way("write") or self.storm.way("rename")
        if way == "lost":
            return
        super().put_file(lpath, rpath, **named)
        if way == "torn":
            data = self.cat_file(rpath)
            self.pipe_file(rpath, data[: len(data) // 2] + bytes(len(data) - len(data) // 2))
        if way == "killed after":
            self.storm.die()

    def cat_file(self, path: str, *arguments: Any, **named: Any) -> Any:
        self.storm.way("read")
        return super().cat_file(path, *arguments, **named)

    def rm_file(self, path: str) -> None:
        way = self.storm.way("remove")
        super()._rm(path)
        if way == "killed after":
            self.storm.die()

    def info(self, path: str, **named: Any) -> Any:
        self.storm.way("read")
        return super().info(path, **named)

    def find(self, path: str, *arguments: Any, **named: Any) -> Any:
        """List a folder; a stale listing is the previous one."""
        way = self.storm.way("list")
        key = f"{path} {arguments} {named}"
        before = self.listed.get(key)
        found = super().find(path, *arguments, **named)
        self.listed[key] = found
        return before if way == "stale" and before is not None else found


@contextlib.contextmanager
def on_object_store(storm: Storm) -> Iterator[None]:
    """Within the block, memory:// is an object store with faults."""
    StormyStore.storm = storm
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(capmix.storage.filesystem, "FIRST_WAIT", 0.001)
        try:
            yield
        finally:
            StormyStore.storm = Storm(None)


def use_object_store() -> None:
    """Replace memory:// by an empty StormyStore."""
    fsspec.register_implementation("memory", StormyStore, clobber=True)
    StormyStore.clear_instance_cache()
    StormyStore.store.clear()
    StormyStore.pseudo_dirs[:] = [""]
    StormyStore.listed.clear()

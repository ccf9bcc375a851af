"""Concurrent runs in one work directory: detect them, warn, and divide the shards between them.

Correctness does not depend on this: parts appear atomically, each shard is checked again before it
is started, and two runs that compute the same part write the same bytes.
"""

import logging
import os
import random
import socket
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from capmix.engine.worker import ShardTask
from capmix.storage.filesystem import storage_errors
from capmix.storage.json_text import parse_object
from capmix.storage.layout import RUNNING
from capmix.storage.store import Store
from capmix.storage.temporary import is_running, process_namespace

log = logging.getLogger(__name__)

LARGEST_PROCESS = 2**31 - 1


@contextmanager
def announced(store: Store) -> Iterator[list[str]]:
    """Register this run in the work directory within the block; yield the other active runs."""
    others = _others(store)
    if others:
        log.warning(
            "another capmix process is using %s (%s); shards will be divided between them. If that "
            "process is dead, delete %s",
            store.location,
            ", ".join(others),
            store.path(RUNNING),
        )
    name = f"{RUNNING}/{uuid.uuid4().hex[:12]}"
    about = {"host": socket.gethostname(), "process": os.getpid()}
    store.write_json(name, about | {"namespace": process_namespace()})
    try:
        yield others
    finally:
        with suppress(*storage_errors()):
            store.fs.rm_file(store.path(name))
            if store.is_local:
                os.rmdir(store.path(RUNNING))  # fails if another run is registered


def forget_dead(store: Store) -> None:
    """Remove the files of killed runs of this machine when the current run has nothing to do.

    This covers a run that was killed after its last shard. Only for local work directories, where
    the check is cheap.
    """
    if store.is_local and not _others(store):
        with suppress(OSError):
            os.rmdir(store.path(RUNNING))


def runs_at_work(store: Store) -> list[str]:
    """Return the runs of other machines, and runs of this machine whose process is alive."""
    return [about for _, about, is_dead in _runs(store) if not is_dead]


def is_alone(store: Store) -> bool:
    """Return whether no other process is at work."""
    own = f"process {os.getpid()} on {socket.gethostname()}"
    return all(about == own for about in runs_at_work(store))


def _others(store: Store) -> list[str]:
    """Return runs_at_work, and remove the files of dead runs of this machine."""
    found = []
    for name, about, is_dead in _runs(store):
        if not is_dead:
            found.append(about)
            continue
        with suppress(*storage_errors()):
            store.fs.rm_file(store.path(name))
    return found


def _runs(store: Store) -> Iterator[tuple[str, str, bool]]:
    """Yield (file, description, is_dead) for each run; is_dead is only known on this machine."""
    for name in store.files(RUNNING):
        try:
            host, process, is_here = _about(store.read_bytes(name))
        except (FileNotFoundError, NotADirectoryError):  # the run has ended in the meantime
            continue
        except ValueError as error:
            yield name, f"unknown process: {name} is damaged, {error}", False
            continue
        is_dead = is_here and not is_running(process)
        yield name, f"process {process} on {host}", is_dead


def _about(data: bytes) -> tuple[str, int, bool]:
    """Return (host, process, is_here); is_here is whether the process number is valid here.

    A process number is valid only in its own process namespace. Raises ValueError for a damaged
    file.
    """
    about = parse_object(data)
    host, process = about.get("host"), about.get("process")
    if not isinstance(host, str):
        raise ValueError("no host")
    if type(process) is not int or not 0 < process <= LARGEST_PROCESS:
        raise ValueError("no process number")
    # Older versions of capmix wrote only the host.
    is_here = about.get("namespace", "") == process_namespace()
    return host, process, is_here or ("namespace" not in about and host == socket.gethostname())


def shuffled(tasks: Sequence[ShardTask]) -> list[ShardTask]:
    """Return the tasks in random order, so that two runs rarely start the same shard together."""
    order = list(tasks)
    random.shuffle(order)
    return order

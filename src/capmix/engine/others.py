"""Runs that work in one directory at the same time: they say so, and share the shards.

Nothing depends on it. Parts appear whole, each shard is looked at again before it is begun, and
two runs that make the same part make the same bytes.
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
    """Within the block this run is written down in the work directory; gives who else is there."""
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
                os.rmdir(store.path(RUNNING))  # while no other run is there


def forget_dead(store: Store) -> None:
    """Remove what killed runs of this machine have left where a run has nothing to do: one that was
    killed after its last shard. Local work directories alone, where looking costs nothing."""
    if store.is_local and not _others(store):
        with suppress(OSError):
            os.rmdir(store.path(RUNNING))


def runs_at_work(store: Store) -> list[str]:
    """Runs of other machines, and those of this one whose process lives."""
    return [about for _, about, is_dead in _runs(store) if not is_dead]


def _others(store: Store) -> list[str]:
    """The same; what dead ones of this machine have left is removed."""
    found = []
    for name, about, is_dead in _runs(store):
        if not is_dead:
            found.append(about)
            continue
        with suppress(*storage_errors()):
            store.fs.rm_file(store.path(name))
    return found


def _runs(store: Store) -> Iterator[tuple[str, str, bool]]:
    """The file of each run, what is known of it, and whether it is a dead one of this machine."""
    for name in store.files(RUNNING):
        try:
            host, process, is_here = _about(store.read_bytes(name))
        except (FileNotFoundError, NotADirectoryError):  # it has ended meanwhile
            continue
        except ValueError as error:
            yield name, f"one whose file {name} is damaged, {error}", False
            continue
        is_dead = is_here and not is_running(process)
        yield name, f"process {process} on {host}", is_dead


def _about(data: bytes) -> tuple[str, int, bool]:
    """Host and process of a run, and whether its number means a process of this machine here.
    Raises ValueError for a damaged file."""
    about = parse_object(data)
    host, process = about.get("host"), about.get("process")
    if not isinstance(host, str):
        raise ValueError("no host")
    if type(process) is not int or not 0 < process <= LARGEST_PROCESS:
        raise ValueError("no process number")
    # An older capmix notes the host alone.
    is_here = about.get("namespace", "") == process_namespace()
    return host, process, is_here or ("namespace" not in about and host == socket.gethostname())


def shuffled(tasks: Sequence[ShardTask]) -> list[ShardTask]:
    """In an order of this run alone, so that two runs seldom begin the same shard together."""
    order = list(tasks)
    random.shuffle(order)
    return order

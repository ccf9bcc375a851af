"""The tasks that wait for a worker, and which worker each of them will probably get."""

from collections import deque
from collections.abc import Sequence

from capmix.engine.worker import ShardTask


class TaskQueue:
    """Tasks that wait for one of `workers` workers.

    A task may be reserved for a worker, which can read its shard ahead. Another worker gets it only
    if no other task is left. Each task is taken once. Shards in the set `suspects`, to which
    `died` adds, are never reserved: one of them may have crashed a worker that read it ahead, and
    would crash the next one in the same way at the cost of another shard.
    """

    def __init__(self, tasks: Sequence[ShardTask], workers: int, suspects: set[str]):
        self._workers, self._suspects = workers, suspects
        self._free = deque(one for one in tasks if one.shard.name not in suspects)
        self._alone = deque(one for one in tasks if one.shard.name in suspects)
        self._reserved: dict[int, ShardTask] = {}

    def __len__(self) -> int:
        return len(self._free) + len(self._alone) + len(self._reserved)

    def take(self, worker: int) -> ShardTask:
        """Remove and return the next task of a worker. Raises KeyError if there is none."""
        if worker in self._reserved:
            return self._reserved.pop(worker)
        for tasks in (self._free, self._alone):
            if tasks:
                return tasks.popleft()
        return self._reserved.popitem()[1]

    def reserve(self, worker: int) -> ShardTask | None:
        """Return the task that is reserved for a worker from now on.

        None if there are fewer tasks than workers: whoever is ready first gets these.
        """
        if worker not in self._reserved and self._free and len(self) >= self._workers:
            self._reserved[worker] = self._free.popleft()
        return self._reserved.get(worker)

    def died(self, worker: int, task: ShardTask) -> str:
        """Release the reservation of a worker that died on `task`, and turn the order of the tasks
        round: neighbouring shards may crash the worker too.

        Returns what to add to the message; the shard that was read ahead may be the cause.
        """
        self._suspects.add(task.shard.name)
        self._free.reverse()
        reserved = self._reserved.pop(worker, None)
        if reserved is None:
            return ""
        self._suspects.add(reserved.shard.name)
        self._alone.append(reserved)
        return f", perhaps because of shard {reserved.shard.name}, which it read ahead"

"""A worker in a process of its own: what the parent holds of it, and its life."""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from typing import Any

from capmix.engine import messages
from capmix.engine.batches import BrokenDeviceError
from capmix.engine.worker import Job, ShardTask, Worker, answered
from capmix.errors import UserError

JOINED_WITHIN = 2.0  # seconds

# What a process does with its job: given that and a function that sends something ahead of an
# answer, a function that answers.
Answering = Callable[[Any, Callable[[Any], None]], Callable[[Any], Any]]


@contextlib.contextmanager
def _main_hidden() -> Iterator[None]:
    """Within the block a process that is started does not run the user's script once more, which
    would start processes too where the script has no `if __name__ == "__main__"`."""
    main: dict[str, Any] = vars(sys.modules["__main__"])
    known: dict[str, Any] = {n: main[n] for n in ("__file__", "__spec__") if n in main}
    main.update(dict.fromkeys(known))
    try:
        yield
    finally:
        main.update(known)


class Process:
    """Started by spawn: threads do not survive a fork.

    It is sent `job` and calls `answering`, a function of a module, with it and with what sends
    messages of its own; what comes back answers every message from then on.
    """

    def __init__(
        self,
        job: Any,
        answering: Answering,
        environment: dict[str, str],
        cores: Sequence[int],
    ):
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        about = (environment, list(cores), os.getpid(), messages.current())
        arguments = (theirs, answering, *about)
        self._process = context.Process(target=_serve, args=arguments, daemon=True)
        data = ForkingPickler.dumps(job)
        is_of_main = b"__main__" in bytes(data)
        with contextlib.nullcontext() if is_of_main else _main_hidden():
            self._process.start()
        theirs.close()
        # Not as an argument: to start a process that dies would wait for ever for it to be read.
        with contextlib.suppress(OSError):
            self.connection.send_bytes(data)

    def send(self, message: Any) -> None:
        with contextlib.suppress(OSError):  # the answer, or its lack, tells
            self.connection.send(message)

    def receive(self) -> Any:
        """The answer; None where the process has ended."""
        try:
            return self.connection.recv()
        except (EOFError, OSError):
            return None

    def ask(self, task: ShardTask | None) -> Any:
        self.send(task)
        answer = self.receive()
        if answer is None:
            raise UserError(
                f"a worker process ended while it started ({self.end()}). Where it ran out of "
                "memory, start fewer --workers; else run again"
            )
        return answer

    def end(self) -> str:
        """Stop the process if it still runs; how it ended."""
        self._process.join(timeout=0.2 if self._process.exitcode is None else None)
        if self._process.is_alive():
            self._process.terminate()
            self._process.join(JOINED_WITHIN)
            self._process.kill()
        self.connection.close()
        code = self._process.exitcode
        if code is not None and code < 0:
            return f"signal {-code}"
        return f"exit code {code}"


def answer_tasks(job: Job, send: Callable[[Any], None]) -> Callable[[ShardTask | None], Any]:
    """Answers None with the plan, and a task with a reply; Seen comes ahead of it."""
    worker: Worker | None = None

    def answer(task: ShardTask | None) -> Any:
        nonlocal worker
        worker = worker or Worker(job)
        return worker.plan() if task is None else worker.run(task, send)

    return lambda task: answered(partial(answer, task))


def _serve(
    connection: Connection,
    answering: Answering,
    environment: dict[str, str],
    cores: list[int],
    parent: int,
    form: messages.MessageForm | None,
) -> None:
    """The life of a worker process."""
    os.environ.update(environment)
    if form is not None:
        messages.show(form)
    if cores:
        os.sched_setaffinity(0, cores)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends us
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()

    def send(message: Any) -> None:
        with contextlib.suppress(OSError):  # the parent ends the run
            connection.send(message)

    try:
        answer = answering(connection.recv(), send)
    except EOFError:
        return
    while True:
        try:
            message = connection.recv()
        except EOFError:
            return
        try:
            reply = answer(message)
        except BrokenDeviceError as error:
            sys.exit(str(error))
        try:
            connection.send(reply)
        except OSError:  # the parent ends the run
            return


def _end_with(parent: int) -> None:
    """End when the parent has been killed, so that no orphan holds a GPU."""
    if sys.platform == "win32":  # where a process keeps its parent's number
        starter = multiprocessing.parent_process()
        if starter is not None:
            starter.join()
    else:
        while os.getppid() == parent:
            time.sleep(0.5)
    os._exit(1)

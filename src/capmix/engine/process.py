"""Worker processes: the parent's handle, and the main loop of the process."""

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

# A task, and the one that probably follows.
Assignment = tuple[ShardTask, ShardTask | None]

# Gets the job and a function that sends messages ahead of an answer; returns the function that
# answers each message from the parent.
Answering = Callable[[Any, Callable[[Any], None]], Callable[[Any], Any]]


@contextlib.contextmanager
def _main_hidden() -> Iterator[None]:
    """Keep processes that are spawned in the block from running the user's script again.

    A script without `if __name__ == "__main__"` would start processes of its own there.
    """
    main: dict[str, Any] = vars(sys.modules["__main__"])
    known: dict[str, Any] = {n: main[n] for n in ("__file__", "__spec__") if n in main}
    main.update(dict.fromkeys(known))
    try:
        yield
    finally:
        main.update(known)


class Process:
    """Handle of a worker process. It is spawned, because threads do not survive a fork.

    The process receives `job` and calls `answering` with it and with a function that sends
    messages; the function that this call returns answers every later message. `answering` must be
    picklable: a module-level function.
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
        # Not as an argument: start() would wait forever if the process died before it read it.
        with contextlib.suppress(OSError):
            self.connection.send_bytes(data)

    def send(self, message: Any) -> None:
        with contextlib.suppress(OSError):  # receive() reports a process that has ended
            self.connection.send(message)

    def receive(self) -> Any:
        """Return the answer; None if the process has ended."""
        try:
            return self.connection.recv()
        except (EOFError, OSError):
            return None

    def ask(self, task: ShardTask | None) -> Any:
        self.send(task)
        answer = self.receive()
        if answer is None:
            raise UserError(
                f"a worker process exited during startup ({self.end()}). If it ran out of memory, "
                "lower --workers; otherwise rerun the same command"
            )
        return answer

    def end(self) -> str:
        """Stop the process if it is still running. Return how it ended, such as `exit code 1`."""
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


def answer_tasks(job: Job, send: Callable[[Any], None]) -> Callable[[Assignment | None], Any]:
    """Return a function that answers None with the plan and a task with a Reply.

    While a task runs, `send` gets its progress as Seen messages.
    """
    worker: Worker | None = None

    def answer(given: Assignment | None) -> Any:
        nonlocal worker
        worker = worker or Worker(job)
        if given is None:
            return worker.plan()
        task, following = given
        return worker.run(task, send, following)

    return lambda given: answered(partial(answer, given))


def _serve(
    connection: Connection,
    answering: Answering,
    environment: dict[str, str],
    cores: list[int],
    parent: int,
    form: messages.MessageForm | None,
) -> None:
    """Run the main loop of a worker process."""
    os.environ.update(environment)
    if form is not None:
        messages.show(form)
    if cores:
        os.sched_setaffinity(0, cores)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C and stops us
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()

    def send(message: Any) -> None:
        with contextlib.suppress(OSError):  # the parent is stopping the run
            connection.send(message)

    try:
        answer = answering(connection.recv(), send)
    except EOFError:
        return
    while True:
        try:
            message = connection.recv()
        # The second if the parent has closed the connection with unread messages.
        except (EOFError, ConnectionError):
            return
        try:
            reply = answer(message)
        except BrokenDeviceError as error:
            sys.exit(str(error))
        try:
            connection.send(reply)
        except OSError:  # the parent is stopping the run
            return


def _end_with(parent: int) -> None:
    """Exit when the parent has been killed, so that no orphan process holds a GPU."""
    if sys.platform == "win32":  # the parent's number does not change when the parent dies
        starter = multiprocessing.parent_process()
        if starter is not None:
            starter.join()
    else:
        while os.getppid() == parent:
            time.sleep(0.5)
    os._exit(1)

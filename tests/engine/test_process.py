"""A worker process and the end of its run."""

from collections.abc import Callable
from typing import Any

from capmix.engine.process import Process


def answer_twice(job: Any, send: Callable[[Any], None]) -> Callable[[Any], Any]:
    def answer(message: Any) -> Any:
        send("progress")
        return "answer"

    return answer


def test_a_worker_whose_answers_are_not_read_any_more_ends_without_an_error() -> None:
    process = Process(None, answer_twice, {}, [])
    process.send("task")
    assert process.connection.poll(60)
    assert process.receive() == "progress"
    assert process.connection.poll(60)
    process.connection.close()  # with an unread answer, which resets the connection
    process._process.join(60)
    assert process._process.exitcode == 0

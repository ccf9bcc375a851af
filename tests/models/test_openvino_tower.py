"""Functions of tensors in OpenVINO; the real towers are tested with their backends."""

import logging
import subprocess
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from typing import Any

import pytest
import torch

from capmix.engine.local import cores
from capmix.errors import UserError
from capmix.models.openvino_tower import OpenVinoTower, check_openvino


def tower(forward: Callable[..., Any], dtype: str = "float32") -> OpenVinoTower:
    """Trace on (2, 3) and compare on (3, 4)."""
    generator = torch.Generator().manual_seed(0)
    example, other = (torch.randn(n, n + 1, 8, generator=generator) for n in (2, 3))
    return OpenVinoTower("model m", torch.nn.Identity(), forward, [example], [other], dtype)


def test_dimensions_that_differ_in_the_examples_may_have_any_size() -> None:
    one = tower(lambda x: x.cumsum(1).relu())
    for shape in ((1, 1, 8), (7, 2, 8), (2, 9, 8)):
        x = torch.randn(shape)
        assert torch.allclose(one(x), x.cumsum(1).relu(), atol=1e-6)
    first = one(torch.ones(1, 1, 8))
    one(torch.zeros(1, 1, 8))
    assert first.eq(1).all()  # the result of one call is not overwritten by the next
    with pytest.raises(RuntimeError):
        one(torch.ones(1, 1, 9))


DROPPED_ELSEWHERE = """
import gc, os, signal, threading, torch
from capmix.models.openvino_tower import OpenVinoTower

def tower():
    x = torch.ones(2, 4)
    return OpenVinoTower("model m", torch.nn.Identity(), torch.relu, [x], [x], "float32")

def drop():
    towers.pop()
    gc.collect()

signal.signal(signal.SIGUSR1, lambda *_: print("signal"))
towers = [tower(), tower()]
thread = threading.Thread(target=drop)
thread.start()
thread.join()
os.kill(os.getpid(), signal.SIGUSR1)
"""


def test_a_signal_after_a_tower_was_dropped_in_another_thread_is_handled() -> None:
    """Fails only on CPUs with AMX."""
    command = [sys.executable, "-c", DROPPED_ELSEWHERE]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "signal\n"), done.stderr[-300:]


def test_it_uses_the_cores_of_the_process() -> None:
    run: Any = tower(torch.relu)._run
    assert run.get_property("INFERENCE_NUM_THREADS") == cores()


def test_a_function_that_is_traced_wrongly_is_refused() -> None:
    def by_length(x: torch.Tensor) -> torch.Tensor:
        return x if x.shape[1] == 3 else -x

    with pytest.raises(UserError, match=r"^model m: OpenVINO's results differ .*cosine -1\.000"):
        tower(by_length)


def test_a_function_that_openvino_does_not_know_is_refused() -> None:
    root = logging.getLogger()
    before = root.level, list(root.handlers)
    with pytest.raises(UserError, match=r"^model m: OpenVINO cannot convert .*omit --runtime"):
        tower(lambda x: torch.linalg.svdvals(x))
    assert (root.level, root.handlers) == before


@pytest.mark.parametrize(
    ("device", "dtype", "message"),
    [
        ("cuda:1", "auto", "--device cuda:1: --runtime openvino runs only on CPUs"),
        ("auto", "float16", "--dtype float16: .* only float32 and bfloat16"),
    ],
)
def test_what_openvino_does_not_support_is_one_clear_line(
    device: str, dtype: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        check_openvino("openvino", device, dtype)
    assert check_openvino("torch", device, dtype) == device


def test_a_missing_package_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def found(name: str) -> ModuleSpec | None:
        return None if name == "openvino" else find_spec(name)

    monkeypatch.setattr("capmix.models.registry.find_spec", found)
    with pytest.raises(UserError, match=r"--runtime openvino needs openvino: .*capmix\[openvino\]"):
        check_openvino("openvino", "auto", "auto")

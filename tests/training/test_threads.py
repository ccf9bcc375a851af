"""Small runs on a CPU use few threads; --threads and the environment decide otherwise."""

import copy
import math
from typing import Any

import open_clip
import pytest
import torch

from capmix.training import cost
from capmix.training.cost import Tower
from capmix.training.threads import sample_operations, threads_for, use_threads


@pytest.fixture(scope="module")
def model() -> Any:
    made = open_clip.CLIP(
        64,
        {"image_size": 32, "patch_size": 8, "width": 64, "layers": 2, "head_width": 32},
        {"context_length": 24, "vocab_size": 1000, "width": 64, "heads": 2, "layers": 1},
    )
    return made.train()


@pytest.fixture
def four_threads(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Four threads and no environment variables, until the end of the test."""
    before = torch.get_num_threads()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


def test_operations_are_those_of_the_towers(model: Any) -> None:
    """The rest is the convolution of patches and the projections."""
    towers = Tower(2, 64, 17).operations + Tower(1, 64, 24).operations
    before = copy.deepcopy(model.state_dict())
    assert towers < sample_operations(model) < 1.2 * towers
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_threads_grow_with_the_step() -> None:
    assert [threads_for(work, 4) for work in (1e9, 1.2e11, 1e13, float("inf"))] == [1, 2, 4, 4]


def test_a_small_step_takes_one_thread(model: Any, four_threads: None) -> None:
    use_threads(model, 256, None)
    assert torch.get_num_threads() == 1
    use_threads(model, 256, 3)
    assert torch.get_num_threads() == 3


def test_the_environment_decides_before_the_default(
    model: Any, four_threads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    use_threads(model, 256, None)
    assert torch.get_num_threads() == 4
    use_threads(model, 256, 2)
    assert torch.get_num_threads() == 2


def test_a_model_with_other_inputs_keeps_all_threads(four_threads: None) -> None:
    use_threads(torch.nn.Linear(2, 2), 256, None)
    assert torch.get_num_threads() == 4


def test_the_rate_for_a_cost_is_that_of_the_threads_of_the_run(
    four_threads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def timed() -> float:
        seen.append(torch.get_num_threads())
        return 1.0

    monkeypatch.setattr(cost, "_timed_rate", timed)
    for given, step in ((None, 1e9), (None, math.inf), (3, 1e9)):
        cost.operations_per_second(given, step)
    assert seen == [1, 4, 3]
    assert torch.get_num_threads() == 4

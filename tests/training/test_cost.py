"""A run that would take days or too much memory needs --yes to start."""

import json
from pathlib import Path

import pytest

from capmix.errors import UserError
from capmix.training import cost
from capmix.training.cost import Tower, check_cost, machine_memory, run_cost
from capmix.training.scales import TrainSettings

GB = 10**9


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A computer with 100 billion operations/s and 24 GB; does not look for GPUs."""
    monkeypatch.setattr(cost, "operations_per_second", lambda *_: 1e11)
    monkeypatch.setattr(cost, "machine_memory", lambda: 24 * GB)


def test_operations_are_those_of_open_clips_profile() -> None:
    """ViT-B-32: 8.82 and 5.96 billion, ViT-L-14: 162 and 13.3 (model_profile.csv, as 2 x MACs)."""
    assert Tower(12, 768, 50).operations / 1e9 == pytest.approx(8.82, rel=0.05)
    assert Tower(12, 512, 77).operations / 1e9 == pytest.approx(5.96, rel=0.05)
    assert Tower(24, 1024, 257).operations / 1e9 == pytest.approx(162, rel=0.05)


def test_small_on_a_cpu_is_asked_about_with_hours_and_memory(machine: None, tmp_path: Path) -> None:
    """12.8 million samples x 4 passes of 14.6 billion operations at 100 billion/s: 2,080 hours."""
    settings = TrainSettings(scale="small", device="cpu")
    with pytest.raises(UserError, match="pass --yes to start it anyway") as error:
        check_cost(settings, str(tmp_path / "run"))
    told = str(error.value)
    assert "ViT-B-32 on 12,800,000 samples on this CPU takes about 2,0" in told
    assert "hours and 56 GB of memory" in told
    assert "available: 24 GB" in told
    found = run_cost(settings)
    assert found is not None
    assert found.loading == 4 * 2 * 4096 * 3 * 4 * 224**2  # workers x prefetched batches
    assert not (tmp_path / "run").exists()


def test_the_rate_is_that_of_the_threads_of_a_step(
    machine: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in the run, a step has no second forward pass for gradient checkpointing."""
    asked = []

    def rate(threads: int | None, step: float) -> float:
        asked.append((threads, step))
        return 1e11

    monkeypatch.setattr(cost, "operations_per_second", rate)
    settings = TrainSettings(scale="small", device="cpu", samples=4096, checkpoints=1, threads=3)
    with pytest.raises(UserError, match="of memory"):
        check_cost(settings, str(tmp_path / "run"))
    assert asked == [(3, pytest.approx(3 * 14.6e9 * 4096, rel=0.05))]


def test_memory_alone_is_asked_about(machine: None, tmp_path: Path) -> None:
    quick = TrainSettings(scale="small", device="cpu", samples=4096, checkpoints=1)
    with pytest.raises(UserError, match="of memory"):
        check_cost(quick, str(tmp_path / "run"))
    check_cost(quick.model_copy(update={"batch_size": 256}), str(tmp_path / "run"))


def test_tiny_is_not_asked_about(machine: None, tmp_path: Path) -> None:
    check_cost(TrainSettings(device="cpu"), str(tmp_path / "run"))
    with pytest.raises(UserError, match=r"--scale small on a CPU takes days or more"):
        check_cost(TrainSettings(scale="small", model="RN50", device="cpu"), str(tmp_path / "run"))


def test_a_batch_on_several_gpus_takes_a_share() -> None:
    """In half precision; DataComp trains small on one A100 of 40 GB."""
    one = run_cost(TrainSettings(scale="small"), 1, is_cpu=False)
    eight = run_cost(TrainSettings(scale="small"), 8, is_cpu=False)
    assert one is not None
    assert eight is not None
    assert eight.loading == one.loading / 8
    assert 10 * GB < one.training < 40 * GB
    assert eight.training < one.training / 4


def test_a_container_has_the_memory_of_its_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cost, "CGROUP", tmp_path / "memory.max")
    whole = machine_memory()
    (tmp_path / "memory.max").write_text("max\n")
    assert machine_memory() == whole
    (tmp_path / "memory.max").write_text("1000\n")
    assert machine_memory() == 1000


def test_a_model_of_a_file_is_known_by_its_shape(tmp_path: Path) -> None:
    vision = {"image_size": 32, "patch_size": 8, "width": 16, "layers": 1}
    text = {"context_length": 8, "width": 16, "layers": 1}
    file = tmp_path / "nano.json"
    file.write_text(json.dumps({"embed_dim": 8, "vision_cfg": vision, "text_cfg": text}))
    found = run_cost(TrainSettings(model=str(file), samples=128))
    assert found is not None
    towers = (Tower(1, 16, 17), Tower(1, 16, 8))
    assert found.operations == 128 * 3 * sum(tower.operations for tower in towers)


def test_a_coca_has_a_decoder_and_scores_of_tokens() -> None:
    """torch counts 32.3 billion operations of a forward pass of coca_ViT-B-32."""
    settings = TrainSettings(scale="small", model="coca_ViT-B-32", batch_size=256, samples=2560)
    found = run_cost(settings, 1, is_cpu=False)
    assert found is not None
    assert found.operations / (2560 * 4) / 1e9 == pytest.approx(32.3, rel=0.1)
    more = run_cost(settings.model_copy(update={"batch_size": 512}), 1, is_cpu=False)
    assert more is not None
    scores = 256 * 76 * 49_408 * 2  # bytes in half precision
    assert more.training - found.training > 3 * scores

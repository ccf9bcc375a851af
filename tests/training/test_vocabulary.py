"""Merges files and weights of models to train are checked, and belong to a run's identity."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from samples import write_pool

from capmix.errors import UserError
from capmix.evaluation.results import evaluate
from capmix.models.vocabulary import check_vocabulary
from capmix.training.pairs import ExportedShards
from capmix.training.scales import TrainSettings
from capmix.training.train import read_run, train

MERGES = ["c a", "ca t</w>", "d o", "do g</w>"]
SIZE = 512 + len(MERGES) + 2


def config_of(size: int = SIZE, path: str = "merges.txt.gz") -> dict[str, Any]:
    text = {"context_length": 16, "vocab_size": size, "width": 16, "heads": 2, "layers": 1}
    vision = {"image_size": 16, "patch_size": 8, "width": 16, "layers": 1, "head_width": 8}
    tokenizer = {"tokenizer_kwargs": {"bpe_path": path}} if path else {}
    return {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text | tokenizer}


def settings_of(folder: Path, config: dict[str, Any], **changes: Any) -> TrainSettings:
    (folder / "nano.json").write_text(json.dumps(config))
    given = {
        "model": str(folder / "nano.json"), "batch_size": 4, "samples": 8, "checkpoints": 1,
        "log_every": 1, "workers": 0, "device": "cpu",
    }  # fmt: skip
    return TrainSettings(**given | changes)


def write_merges(folder: Path, text: str) -> None:
    (folder / "merges.txt.gz").write_bytes(gzip.compress(text.encode()))


def start_again(run: Path) -> None:
    about = json.loads((run / "run.json").read_text())
    del about["finished"]
    (run / "run.json").write_text(json.dumps(about))


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> ExportedShards:
    return ExportedShards([str(write_pool(tmp_path_factory.mktemp("shards"), 2, 8))])


def test_a_model_with_four_merges_is_trained_and_evaluated_from_any_directory(
    shards: ExportedShards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_merges(tmp_path, "\n".join(["#version: 0.2", *MERGES]))
    settings = settings_of(tmp_path, config_of())
    run = tmp_path / "run"
    checkpoint = train(settings, shards, str(run))
    weights = torch.load(checkpoint, weights_only=True)["state_dict"]
    assert weights["token_embedding.weight"].shape == (518, 16)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert evaluate(str(run), None, "embedded", device="cpu").lines
    start_again(run)
    write_merges(tmp_path, "\n".join(["#version: 0.2", *MERGES[:3], "b u"]))
    with pytest.raises(UserError, match="contains a run with different tokenizer"):
        train(settings, shards, str(run))


@pytest.mark.parametrize(
    ("content", "size", "told"),
    [
        (["#version: 0.2", *MERGES], 517, "vocab_size is 517, .* 518 ids: .* and 4 merges"),
        (["#version: 0.2", *MERGES, ""], 518, "vocab_size is 518, .* 519 ids: .* and 5 merges"),
        (["#version: 0.2", "", *MERGES], 519, "line 2: '' is not a merge"),
        (["#version: 0.2", "c a", "c a t"], 518, "line 3: 'c a t' is not a merge"),
        (MERGES, 518, "line 1 is a merge, but"),
        (None, 518, "merges.txt.gz: no such file"),
        ("plain", 518, "not a gzip file"),
        ("default", 1000, "vocab_size is 1,000, .* 49,408 ids"),
    ],
)
def test_a_vocabulary_that_does_not_fit_is_refused_before_training(
    shards: ExportedShards, tmp_path: Path, content: Any, size: int, told: str
) -> None:
    if isinstance(content, list):
        write_merges(tmp_path, "\n".join(content))
    elif content == "plain":
        (tmp_path / "merges.txt.gz").write_text("c a")
    config = config_of(size, "" if content == "default" else "merges.txt.gz")
    with pytest.raises(UserError, match=told) as error:
        train(settings_of(tmp_path, config), shards, str(tmp_path / "run"))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_pretrained_weights_are_loaded_and_belong_to_the_run(
    shards: ExportedShards, tmp_path: Path
) -> None:
    write_merges(tmp_path, "\n".join(["#version: 0.2", *MERGES]))
    first = train(settings_of(tmp_path, config_of()), shards, str(tmp_path / "first"))
    weights = torch.load(first, weights_only=True)["state_dict"]
    file = tmp_path / "weights.safetensors"
    save_file(weights, file)
    slow = {"learning_rate": 1e-12, "open_clip": ["--pretrained", str(file)]}
    settings = settings_of(tmp_path, config_of(), **slow)
    run = tmp_path / "run"
    found = torch.load(train(settings, shards, str(run)), weights_only=True)["state_dict"]
    for name, value in weights.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-6)
    assert len(read_run(str(run))["weights"]) == 64
    start_again(run)
    save_file({name: value + 1 for name, value in weights.items()}, file)
    with pytest.raises(UserError, match="contains a run with different weights"):
        train(settings, shards, str(run))
    save_file({"a": torch.zeros(1)}, file)
    with pytest.raises(UserError, match="weights do not load into the model nano") as error:
        train(settings, shards, str(tmp_path / "other"))
    assert "\n" not in str(error.value)
    file.unlink()
    with pytest.raises(UserError, match="--pretrained .*: no such file, and no open_clip tag"):
        train(settings, shards, str(tmp_path / "third"))


def test_the_vocabularies_of_open_clips_own_models_fit() -> None:
    import open_clip

    for name in ("ViT-B-32", "RN50", "coca_ViT-B-32", "ViT-B-16-SigLIP", "roberta-ViT-B-32"):
        check_vocabulary(name, open_clip.get_model_config(name))
    check_vocabulary("my-siglip", config_of(32_000, ""))
    with pytest.raises(UserError, match="for names with siglip and would ignore bpe_path m.gz"):
        check_vocabulary("my-siglip", config_of(32_000, "m.gz"))

"""Heads on saved embeddings: compared with torch, and run from the command line."""

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch
from samples import write_pool

from capmix.annotate.annotate import IN_CONFIG
from capmix.annotate.head import MAX_BYTES, predict, read_head
from capmix.annotate.settings import AnnotateSettings
from capmix.cli.main import main
from capmix.errors import UserError
from capmix.workspace import open_workspace

Arrays = dict[str, np.ndarray]


def settings(**options: Any) -> AnnotateSettings:
    return AnnotateSettings(method="head", **options)


def layers(*sizes: int, prefix: str = "", seed: int = 0) -> Arrays:
    """Return random layers of these sizes, numbered like layers with a Dropout after each."""
    draw, found = np.random.default_rng(seed), {}
    for number, (inputs, outputs) in enumerate(pairwise(sizes)):
        weight = draw.normal(size=(outputs, inputs)) / math.sqrt(inputs)
        found[f"{prefix}{2 * number}.weight"] = weight.astype(np.float32)
        found[f"{prefix}{2 * number}.bias"] = draw.normal(size=outputs).astype(np.float32)
    return found


def saved(folder: Path, tensors: Arrays) -> str:
    save_file(tensors, folder / "head.safetensors")
    return str(folder / "head.safetensors")


@pytest.mark.parametrize("activation", ["none", "relu"])
@pytest.mark.parametrize("output", ["none", "sigmoid", "softmax"])
def test_outputs_equal_those_of_torch(tmp_path: Path, activation: str, output: str) -> None:
    """The layers of LAION's aesthetic predictor, one vector at a time."""
    sizes = (768, 1024, 128, 64, 16, 3)
    modules: list[torch.nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        modules += [torch.nn.Linear(inputs, outputs), torch.nn.Dropout(0.2)]
    model = torch.nn.Sequential(*modules[:-1]).eval()
    path = tmp_path / "head.safetensors"
    save_torch({f"layers.{name}": one for name, one in model.state_dict().items()}, path)
    vectors = np.random.default_rng(0).normal(size=(20, 768)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    expected = []
    with torch.no_grad():
        for vector in torch.from_numpy(vectors):
            for number, layer in enumerate(one for one in model if hasattr(one, "weight")):
                if number and activation == "relu":
                    vector = torch.relu(vector)
                vector = layer(vector)
            if output != "none":
                vector = vector.sigmoid() if output == "sigmoid" else vector.softmax(0)
            expected.append(vector.numpy())
    found = predict(read_head(str(path)), vectors, settings(activation=activation, output=output))
    assert found.dtype == np.float32
    assert np.abs(found - np.stack(expected)).max() <= 1e-6


def test_no_activation_is_between_consecutive_numbers(tmp_path: Path) -> None:
    """As in LAION's H14 NSFW detector, which ends with two linear layers."""
    model = torch.nn.Sequential(
        *(torch.nn.Linear(8, 6), torch.nn.ReLU(), torch.nn.Dropout(0.2)),
        *(torch.nn.Linear(6, 5), torch.nn.Linear(5, 1)),
    ).eval()
    path = tmp_path / "head.safetensors"
    save_torch({f"layers.{name}": one for name, one in model.state_dict().items()}, path)
    vectors = np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32)
    with torch.no_grad():
        expected = model(torch.from_numpy(vectors)).numpy()
    found = predict(read_head(str(path)), vectors, settings(activation="relu"))
    assert np.abs(found - expected).max() <= 1e-6


def test_a_linear_head_has_no_number_and_may_have_no_bias(tmp_path: Path) -> None:
    path = saved(tmp_path, {"weight": np.array([[1, 2, 3]], np.float16)})
    found = predict(read_head(path), np.array([[1, 0, 2]]), settings())
    assert found.tolist() == [[7]]


def test_layers_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    sizes = [2] * 13
    found = read_head(saved(tmp_path, layers(*sizes)))
    expected = layers(*sizes)
    assert [one.weight.tolist() for one in found.layers] == [
        expected[f"{2 * number}.weight"].tolist() for number in range(12)
    ]


def test_outputs_of_any_size_do_not_overflow(tmp_path: Path) -> None:
    head = read_head(saved(tmp_path, {"weight": np.array([[1e4], [-1e4]], np.float32)}))
    for output in ("sigmoid", "softmax"):
        with np.errstate(all="raise", under="ignore"):
            assert predict(head, np.ones((1, 1)), settings(output=output)).tolist() == [[1, 0]]


BAD: dict[str, tuple[Arrays, str]] = {
    "another tensor": ({"conv.weight.x": np.zeros((2, 3), np.float32)}, "not of a linear layer"),
    "whole numbers": ({"weight": np.zeros((2, 3), np.int64)}, "is int64"),
    "NaN": ({"weight": np.full((2, 3), np.nan, np.float32)}, "NaN or infinity"),
    "three dimensions": ({"weight": np.zeros((2, 3, 4), np.float32)}, "two dimensions"),
    "a bias alone": ({"0.bias": np.zeros(2, np.float32)}, "layer 0 has no weight"),
    "another bias": (
        {"weight": np.zeros((2, 3), np.float32), "bias": np.zeros(3, np.float32)},
        r"weight \(2, 3\) and bias \(3,\)",
    ),
    "sizes that do not follow": (
        {"0.weight": np.zeros((2, 3), np.float32), "1.weight": np.zeros((1, 4), np.float32)},
        "layer 1 has 4 inputs after 2 outputs",
    ),
    "two modules": (
        {"a.0.weight": np.zeros((2, 3), np.float32), "b.1.weight": np.zeros((1, 2), np.float32)},
        "several modules",
    ),
    "many outputs": ({"weight": np.zeros((65, 3), np.float32)}, "65 outputs exceed"),
    "a wide layer": ({"weight": np.zeros((16_385, 1), np.float16)}, "16,385 outputs exceed"),
    "no tensors": ({}, "no tensors"),
}


@pytest.mark.parametrize("name", BAD)
def test_files_that_are_no_head_are_one_line_errors(tmp_path: Path, name: str) -> None:
    tensors, why = BAD[name]
    with pytest.raises(UserError, match=why) as raised:
        read_head(saved(tmp_path, tensors))
    assert "\n" not in str(raised.value)


def test_other_files_are_one_line_errors(tmp_path: Path) -> None:
    path = tmp_path / "head.pth"
    torch.save({"weight": torch.zeros(1, 3)}, path)
    with pytest.raises(UserError, match="head.pth: .*expected a .safetensors file"):
        read_head(str(path))
    with pytest.raises(UserError, match="No such file"):
        read_head(str(tmp_path / "absent"))
    with (tmp_path / "large").open("wb") as stream:
        stream.truncate(MAX_BYTES + 1)
    with pytest.raises(UserError, match="exceed the limit"):
        read_head(str(tmp_path / "large"))


def test_a_head_on_the_saved_embeddings_of_a_pool(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_pool(tmp_path / "pool", shards=2, samples=4)
    monkeypatch.chdir(tmp_path)
    assert main(["score", "pool", "--work", "w", "--model", "mini"]) == 0
    (part,) = Path("w/embeddings").glob("*/image/00001.npy")
    vectors = np.load(part).astype(np.float32)
    width = vectors.shape[1]
    saved(tmp_path, layers(width, 4, 1))
    annotate = "annotate --work w --method head --weights head.safetensors"
    assert main(f"{annotate} --name laion --column aesthetic".split()) == 0
    work = open_workspace("pool", "w")
    found = work.store.read_table("columns/laion/00001.parquet")["aesthetic"].to_numpy()
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    expected = predict(read_head("head.safetensors"), vectors, settings())
    assert np.abs(found - expected[:, 0]).max() <= 1e-6
    assert work.mix("raw", where="laion_aesthetic > -100", out="some").summary.kept == 8
    # Another file at the same place is another head.
    saved(tmp_path, layers(width, 2, seed=1))
    assert main(f"{annotate} --output softmax --no-normalize".split()) == 0
    table = work.store.read_table("columns/head/00000.parquet")
    assert np.allclose(table["value_0"].to_numpy() + table["value_1"].to_numpy(), 1, atol=1e-6)
    saved(tmp_path, layers(width, 2, seed=2))
    assert main(f"{annotate} --output softmax --no-normalize".split()) == 0
    again = work.store.read_table("columns/head/00000.parquet")
    assert again["value_0"].to_pylist() != table["value_0"].to_pylist()
    saved(tmp_path, layers(width + 1, 1))
    capsys.readouterr()
    assert main(annotate.split()) == 2
    error = capsys.readouterr().err
    assert f"takes {width + 1} dimensions" in error
    assert f"have {width}" in error
    for wrong in ("--column status", "--column 1st", "--column A"):
        assert main(f"{annotate} {wrong}".split()) == 2
    assert main(["annotate", "--work", "w", "--method", "head"]) == 2
    assert "expected --weights" in capsys.readouterr().err


def test_options_of_new_methods_do_not_outdate_annotations_of_earlier_versions() -> None:
    kept = AnnotateSettings(method="clusters").model_dump(include=IN_CONFIG)
    assert list(kept) == [
        *("method", "embeddings", "reference", "seed", "clusters", "of", "epsilon", "norm"),
        *("source", "temperature", "batch", "rounds"),
    ]

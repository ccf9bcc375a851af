"""Scores with towers in OpenVINO, compared with torch's."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
from samples import write_pool
from tiny_clip import CLIP, COCA, open_clip_folder

from capmix.errors import UserError
from capmix.models.registry import SCORERS, needs_gpu
from capmix.models.tokens import encode_texts
from capmix.score.scorers import make_scorer
from capmix.score.settings import ScoreSettings
from capmix.score.stage import DEFAULTS
from capmix.storage.compare import same_settings
from capmix.workspace import open_workspace

TEXTS = ["a cat", "two dogs in green grass", "sea " * 100, "a cat", "old house"]
# Largest difference of a cosine seen with these wide random weights: 0.0011.
BFLOAT16 = 0.005
BUILDERS: dict[str, Callable[[Path], str]] = {
    "open_clip": lambda folder: open_clip_folder(folder, CLIP),
    "coca": lambda folder: open_clip_folder(folder, COCA),
    "clip": lambda folder: f"transformers:{tiny_models.clip(folder)}",
    "siglip": lambda folder: f"transformers:{tiny_models.siglip(folder)}",
}


@dataclass
class Scorers:
    """A model in torch, and in OpenVINO by dtype."""

    torch: Any
    openvino: dict[str, Any]


@pytest.fixture(scope="module", params=list(BUILDERS))
def scorers(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Scorers:
    model = BUILDERS[request.param](tmp_path_factory.mktemp("m") / request.param)
    return Scorers(
        make_scorer(ScoreSettings(model=model, device="cpu")),
        {
            dtype: make_scorer(ScoreSettings(model=model, runtime="openvino", dtype=dtype))
            for dtype in ("float32", "bfloat16")
        },
    )


def cosines(scorer: Any) -> np.ndarray:
    """Return the cosine of every image with every text."""
    pixels = np.random.default_rng(0).standard_normal((5, 3, 32, 32)).astype(np.float32)
    named = hasattr(scorer, "_processor")
    images = scorer.encoder.encode_pixels([{"pixel_values": p} if named else p for p in pixels])
    texts = encode_texts(scorer, TEXTS)
    for one in (images, texts):
        assert one.dtype == np.float32
        assert np.abs(np.linalg.norm(one, axis=1) - 1).max() < 1e-5
    found: np.ndarray = images @ texts.T
    return found


def test_float32_differs_by_rounding_and_bfloat16_by_little(scorers: Scorers) -> None:
    plain = cosines(scorers.torch)
    assert plain.std() > 0.005
    assert np.abs(cosines(scorers.openvino["float32"]) - plain).max() < 1e-5
    drift = np.abs(cosines(scorers.openvino["bfloat16"]) - plain).max()
    assert 0 < drift < BFLOAT16


def test_an_image_and_a_text_do_not_depend_on_their_batch(scorers: Scorers) -> None:
    one = scorers.openvino["float32"]
    texts = encode_texts(one, TEXTS[:1])
    assert np.abs(encode_texts(one, TEXTS)[:1] - texts).max() < 1e-6


def test_the_runtime_and_the_dtype_are_settings(scorers: Scorers) -> None:
    for dtype, one in scorers.openvino.items():
        assert one.settings["runtime"] == "openvino"
        assert one.settings["dtype"] == dtype
        assert one.encoder.embedded_with == {"runtime": "openvino", "dtype": dtype}
        assert "openvino" in one.provenance["versions"]
        assert not same_settings(one.settings, scorers.torch.settings, DEFAULTS)
    earlier = {k: v for k, v in scorers.torch.settings.items() if k != "runtime"}
    assert same_settings(earlier, scorers.torch.settings, DEFAULTS)
    assert "openvino" not in scorers.torch.provenance["versions"]


def test_embeddings_and_scores_of_another_runtime_are_recomputed(tmp_path: Path) -> None:
    model = open_clip_folder(tmp_path / "m", CLIP)
    work = open_workspace(str(write_pool(tmp_path / "p")), str(tmp_path / "w"))
    settings = ScoreSettings(model=model, sources=["raw"], save_embeddings=True)
    work.score(settings)
    parts = work.store.parts("embeddings") + work.store.parts("scores")
    assert len(parts) == 2 * len(work.pool.shards)
    work.score(settings, runtime="openvino", dtype="bfloat16")
    for part in parts:
        marker = work.store.read_marker(part)
        assert marker is not None
        assert marker.config["runtime"] == "openvino"
        assert marker.config["dtype"] == "bfloat16"


def test_a_model_of_images_of_any_shape_is_refused_before_it_is_loaded(tmp_path: Path) -> None:
    folder = tiny_models.siglip2(tmp_path / "siglip2")
    (folder / "model.safetensors").unlink()
    settings = ScoreSettings(model=f"transformers:{folder}", runtime="openvino")
    with pytest.raises(UserError, match="only clip and siglip models, and this is a siglip2"):
        make_scorer(settings)


def test_it_runs_on_the_cpu_even_where_there_is_a_gpu() -> None:
    assert needs_gpu(SCORERS, ScoreSettings(model="ViT-B-32/openai"))
    assert not needs_gpu(SCORERS, ScoreSettings(model="ViT-B-32/openai", runtime="openvino"))


def test_a_scorer_without_this_runtime_is_refused(tmp_path: Path) -> None:
    work = open_workspace("embedded", str(tmp_path / "w"))
    with pytest.raises(UserError, match="--runtime openvino: --model mini does not support it"):
        work.score(model="mini", runtime="openvino")

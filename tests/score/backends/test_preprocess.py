"""Scores of images that capmix and open_clip preprocess differently."""

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from samples import image_bytes, sample_members, tar_bytes, write_pool
from tiny_clip import CLIP, open_clip_folder

from capmix.engine.stage import Stage
from capmix.errors import UserError
from capmix.score.settings import ScoreSettings
from capmix.workspace import Workspace, open_workspace

TEXT = "a picture of something"
SIZE = (60, 44)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def picture() -> Image.Image:
    return Image.open(io.BytesIO(image_bytes(5, SIZE, "PNG"))).convert("RGB")


def turned(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(picture(), "JPEG", exif=exif)


def see_through(mode: str) -> bytes:
    image = picture().convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(SIZE))
    return encoded(image.convert(mode), "PNG")


def printed() -> bytes:
    """CMYK with a black channel, which makes the conversion to RGB nonlinear."""
    inks = [*picture().convert("CMYK").split()[:3], Image.linear_gradient("L").resize(SIZE)]
    return encoded(Image.merge("CMYK", inks), "JPEG")


def palette() -> bytes:
    return encoded(picture().quantize(16), "PNG", transparency=bytes([0, 40, 90, 255]))


def sixteen_bits() -> bytes:
    ramp = np.linspace(0, 65_535, SIZE[0] * SIZE[1]).reshape(SIZE[::-1]).astype(np.uint16)
    return encoded(Image.fromarray(ramp), "PNG")


# By member name, and whether capmix's preprocessing changes the score.
IMAGES: dict[str, tuple[bytes, bool]] = {
    "plain.jpg": (encoded(picture(), "JPEG"), False),
    "large.jpg": (encoded(picture().resize((600, 440)), "JPEG"), False),
    "grey.png": (encoded(picture().convert("L"), "PNG"), False),
    "cmyk.jpg": (printed(), True),
    "bits.png": (encoded(picture().convert("1"), "PNG"), True),
    "colours.png": (encoded(picture().quantize(16), "PNG"), True),
    "palette.png": (palette(), True),
    "rgba.png": (see_through("RGBA"), True),
    "rgba.webp": (
        encoded(Image.open(io.BytesIO(see_through("RGBA"))), "WEBP", lossless=True),
        True,
    ),
    "la.png": (see_through("LA"), True),
    "sixteen.png": (sixteen_bits(), True),
    **{f"turn{one}.jpg": (turned(one), one > 1) for one in range(1, 9)},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return open_clip_folder(tmp_path_factory.mktemp("clip"), CLIP)


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> str:
    members = []
    for number, (name, (data, _)) in enumerate(IMAGES.items()):
        key = name.replace(".", "-")
        about = {"uid": f"{number:032x}", "caption": TEXT}
        members += [(f"{key}.{name.rpartition('.')[2]}", data), (f"{key}.txt", TEXT.encode())]
        members += [(f"{key}.json", json.dumps(about).encode())]
    folder = tmp_path_factory.mktemp("odd")
    (folder / "00000.tar").write_bytes(tar_bytes(members))
    return str(folder)


@pytest.fixture(scope="module")
def expected(model: str) -> dict[str, float]:
    """As in open_clip's README: `preprocess(Image.open(...)).unsqueeze(0)`."""
    loaded, _, preprocess = open_clip.create_model_and_transforms(model)
    tokenizer = open_clip.get_tokenizer(model)
    loaded.eval()
    scores = {}
    with torch.no_grad():
        words = loaded.encode_text(tokenizer([TEXT]))
        words /= words.norm(dim=-1, keepdim=True)
        for name, (data, _) in IMAGES.items():
            image = preprocess(Image.open(io.BytesIO(data))).unsqueeze(0)
            features = loaded.encode_image(image)
            features /= features.norm(dim=-1, keepdim=True)
            scores[name] = float(features @ words.T)
    return scores


def scores_of(work: Workspace, settings: ScoreSettings) -> dict[str, float]:
    work.score(settings)
    rows = work.store.read_table(f"scores/{settings.name}/raw/00000.parquet").to_pylist()
    names = {name.replace(".", "-"): name for name in IMAGES}
    assert {row["status"] for row in rows} == {"ok"}
    return {names[row["key"]]: row["score"] for row in rows}


@pytest.mark.parametrize("save", [False, True])
def test_with_open_clips_preparation_scores_are_those_of_plain_open_clip(
    model: str, pool: str, expected: dict[str, float], save: bool, tmp_path: Path
) -> None:
    settings = ScoreSettings(
        model=model, sources=["raw"], preprocess="open_clip", save_embeddings=save
    )
    found = scores_of(open_workspace(pool, str(tmp_path / "w")), settings)
    worst = {name: abs(found[name] - expected[name]) for name in IMAGES}
    assert max(worst.values()) < (5e-4 if save else 1e-5), worst


def test_by_default_they_differ_where_the_documentation_says(
    model: str, pool: str, expected: dict[str, float], tmp_path: Path
) -> None:
    """Decode every pixel, so that the scores of large JPEGs are equal too."""
    settings = ScoreSettings(model=model, sources=["raw"], exact_decode=True)
    found = scores_of(open_workspace(pool, str(tmp_path / "w")), settings)
    apart = {name: abs(found[name] - expected[name]) for name in IMAGES}
    differ = {name for name, (_, other) in IMAGES.items() if other}
    assert {name for name, by in apart.items() if by > 1e-5} == differ, apart
    assert all(by < 1e-5 for name, by in apart.items() if name not in differ), apart


def test_another_preparation_makes_embeddings_and_scores_again(
    model: str, pool: str, tmp_path: Path
) -> None:
    work = open_workspace(pool, str(tmp_path / "w"))
    settings = ScoreSettings(model=model, sources=["raw"], save_embeddings=True)
    first = scores_of(work, settings)
    assert preparations(work, settings) == ["capmix", "capmix"]
    second = scores_of(work, settings.model_copy(update={"preprocess": "open_clip"}))
    assert preparations(work, settings) == ["open_clip", "open_clip"]
    assert abs(first["turn5.jpg"] - second["turn5.jpg"]) > 1e-3


def test_markers_say_how_pixels_are_made(model: str, pool: str, tmp_path: Path) -> None:
    """Parts made in another way stay valid."""
    work = open_workspace(pool, str(tmp_path / "w"))
    settings = ScoreSettings(model=model, sources=["raw"], save_embeddings=True)
    scores = scores_of(work, settings)
    exact = settings.model_copy(update={"exact_decode": True})
    assert scores_of(work, exact) == scores
    assert made_by(work, settings, f"embeddings/{settings.name}/image/00000") == "fast"
    other = open_workspace(pool, str(tmp_path / "exact"))
    precise = scores_of(other, exact)
    assert made_by(other, exact, f"embeddings/{settings.name}/image/00000") == "exact"
    plain = [name for name, (_, changes) in IMAGES.items() if not changes and name != "large.jpg"]
    assert max(abs(scores[name] - precise[name]) for name in plain) < 5e-4


def made_by(work: Workspace, settings: ScoreSettings, part: str) -> str:
    marker = work.store.read_marker(part)
    assert marker is not None
    return str(marker.provenance["pixels"])


def preparations(work: Workspace, settings: ScoreSettings) -> list[str]:
    """Return the settings in the markers of the embeddings and the scores."""
    folders = [f"embeddings/{settings.name}/image", f"scores/{settings.name}/raw"]
    markers = [work.store.read_marker(f"{folder}/00000") for folder in folders]
    return [marker.config.get("preprocess", "none") for marker in markers if marker is not None]


def test_what_an_earlier_version_scored_stays_valid(
    model: str, pool: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its markers do not contain the preprocessing."""
    from capmix.score import scorers

    def without(*given: Any, **named: Any) -> list[Stage]:
        stages = score_stages(*given, **named)
        return [
            replace(stage, config={k: v for k, v in stage.config.items() if k != "preprocess"})
            for stage in stages
        ]

    score_stages = scorers.score_stages
    work = open_workspace(pool, str(tmp_path / "w"))
    settings = ScoreSettings(model=model, sources=["raw"], save_embeddings=True)
    with monkeypatch.context() as patch:
        patch.setattr(scorers, "score_stages", without)
        work.score(settings)
    assert preparations(work, settings) == ["none", "none"]
    folders = [f"embeddings/{settings.name}/image", f"scores/{settings.name}/raw"]
    files = [Path(work.store.path(f"{folder}/00000.parquet")) for folder in folders]
    made = [file.stat().st_mtime_ns for file in files]
    work.score(settings)
    assert [file.stat().st_mtime_ns for file in files] == made


@pytest.mark.parametrize("model_name", ["mini", "transformers:/nowhere", "null_models:NullScorer"])
def test_scorers_of_another_kind_refuse_it_before_they_are_loaded(
    model_name: str, tmp_path: Path
) -> None:
    work = open_workspace(str(write_pool(tmp_path / "p", 1, 2)), str(tmp_path / "w"))
    with pytest.raises(
        UserError, match="--preprocess open_clip: the scorer .* supports only capmix"
    ):
        work.score(model=model_name, preprocess="open_clip")


@pytest.mark.parametrize("preprocess", ["capmix", "open_clip"])
def test_bounds_hold_in_both_ways(preprocess: Any, tmp_path: Path) -> None:
    """Bad images fail one row each: too many pixels (stored or resized), no or half an image."""
    vision = {**CLIP["vision_cfg"], "image_size": 64}
    model = open_clip_folder(tmp_path / "m", {**CLIP, "vision_cfg": vision})
    about = json.loads((tmp_path / "m/open_clip_config.json").read_text())
    about["preprocess_cfg"]["size"] = 64
    (tmp_path / "m/open_clip_config.json").write_text(json.dumps(about))
    bad = {
        "bomb": encoded(Image.new("1", (30_000, 30_000)), "PNG"),
        "line": encoded(Image.new("L", (65_000, 1)), "PNG"),
        "none": b"<html>",
        "half": image_bytes(1, (200, 200))[:800],
    }
    members = sample_members("good", 99, TEXT)
    for number, (key, data) in enumerate(bad.items()):
        fields = {"uid": f"{number:032x}"}
        members += [(f"{key}.jpg", data), (f"{key}.txt", TEXT.encode())]
        members += [(f"{key}.json", json.dumps(fields).encode())]
    (tmp_path / "p").mkdir()
    (tmp_path / "p/00000.tar").write_bytes(tar_bytes(members))
    work = open_workspace(str(tmp_path / "p"), str(tmp_path / "w"), max_failures=1.0)
    settings = ScoreSettings(model=model, sources=["raw"], preprocess=preprocess)
    work.score(settings)
    rows = work.store.read_table(f"scores/{settings.name}/raw/00000.parquet").to_pylist()
    reasons = {row["key"]: row["reason"] for row in rows}
    assert reasons == {
        "good": None, "bomb": "too_many_pixels", "line": "too_many_pixels",
        "none": "not_an_image", "half": "broken_image",
    }  # fmt: skip

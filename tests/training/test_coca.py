"""CoCa models are trained with both losses, whatever their file is called."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from samples import write_pool

from capmix.errors import UserError
from capmix.evaluation.results import evaluate
from capmix.training import progress
from capmix.training.coca import check_coca, is_coca
from capmix.training.hooks import _create_model
from capmix.training.model import know_model
from capmix.training.pairs import ExportedShards
from capmix.training.scales import TrainSettings
from capmix.training.train import about_run, read_run, train

CLIP: dict[str, Any] = {
    "embed_dim": 16,
    "vision_cfg": {
        "image_size": 16, "patch_size": 8, "width": 16, "layers": 1, "head_width": 8,
    },
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}  # fmt: skip
COCA: dict[str, Any] = {
    "embed_dim": 16,
    "vision_cfg": CLIP["vision_cfg"]
    | {"attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True},
    "text_cfg": CLIP["text_cfg"] | {"embed_cls": True, "output_tokens": True},
    "multimodal_cfg": {
        "context_length": 16, "width": 16, "heads": 2, "layers": 1, "attn_pooler_heads": 2,
    },
    "custom_text": True,
}  # fmt: skip


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> ExportedShards:
    return ExportedShards([str(write_pool(tmp_path_factory.mktemp("shards"), 2, 8))])


def settings_of(path: Path, config: dict[str, Any], **changes: Any) -> TrainSettings:
    path.write_text(json.dumps(config))
    given = {
        "model": str(path), "batch_size": 4, "samples": 8, "checkpoints": 1, "log_every": 1,
        "workers": 0, "device": "cpu",
    }  # fmt: skip
    return TrainSettings(**given | changes)


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_coca_of_any_file_name_is_trained_with_both_losses(
    shards: ExportedShards, tmp_path: Path
) -> None:
    settings = settings_of(tmp_path / "x.json", COCA)
    train(settings, shards, str(tmp_path / "run"))
    lines = metrics(tmp_path / "run")
    assert [line["step"] for line in lines] == [1, 2]
    for line in lines:
        parts = line["contrastive_loss"] + line["caption_loss"]
        assert line["loss"] == pytest.approx(parts, abs=2e-6)
        assert line["caption_loss"] == pytest.approx(2 * 11.3, rel=0.1)  # 2 x (ln(49,408) + 1 / 2)


def test_a_coca_resumes_with_its_losses_apart_and_is_evaluated(
    shards: ExportedShards,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    weights = {"caption_loss_weight": 3.0, "contrastive_loss_weight": 0.5}
    settings = settings_of(tmp_path / "x.json", COCA, checkpoints=2, **weights)
    run = tmp_path / "run"
    # The trainer's log replaces the handlers of the root logger.
    monkeypatch.setattr(progress.log, "handlers", [caplog.handler])
    monkeypatch.setattr(progress.log, "level", logging.INFO)
    checkpoint = train(settings, shards, str(run))
    whole = metrics(run)
    last = whole[-1]
    assert last["caption_loss"] == pytest.approx(3 * 11.3, rel=0.1)
    terms = f"contrastive {last['contrastive_loss']:.4f}, caption {last['caption_loss']:.4f}"
    assert f"loss {last['loss']:.4f} ({terms}), " in caplog.text
    state = torch.load(checkpoint, weights_only=True)
    torch.save(state | {"epoch": 1}, checkpoint)
    about = read_run(str(run))
    assert about["model"] == "coca-x"
    del about["finished"]
    (run / "run.json").write_text(json.dumps(about))
    train(settings, shards, str(run))
    assert [(line["step"], *line) for line in metrics(run)] == [
        (line["step"], *line) for line in whole
    ]
    assert metrics(run)[0] == whole[0]
    assert evaluate(str(run), None, "embedded", device="cpu").lines


def test_the_decoders_output_layer_is_initialised(tmp_path: Path) -> None:
    """open_clip leaves it as allocated memory, which torch fills with NaN here."""
    import open_clip

    know_model("coca-initial", COCA)
    torch.use_deterministic_algorithms(True)
    try:
        theirs = open_clip.create_model_and_transforms("coca-initial")[0]
        made = _create_model(open_clip.create_model_and_transforms, TrainSettings(), "a")(
            "coca-initial"
        )[0]
    finally:
        torch.use_deterministic_algorithms(False)
    unset = [name for name, value in theirs.named_parameters() if value.isnan().any()]
    assert unset == ["text_decoder.text_projection"]
    assert not any(value.isnan().any() for value in made.parameters())
    assert made.text_decoder.text_projection.std().item() == pytest.approx(16**-0.5, rel=0.01)


def test_accumulated_steps_of_a_coca_equal_whole_ones(
    shards: ExportedShards, tmp_path: Path
) -> None:
    found = []
    for accumulate in (1, 2):
        changes = {"batch_size": 8, "accumulate": accumulate, "precision": "fp32"}
        settings = settings_of(tmp_path / "x.json", COCA, **changes)
        checkpoint = train(settings, shards, str(tmp_path / f"run-{accumulate}"))
        found.append(torch.load(checkpoint, weights_only=True)["optimizer"]["state"])
    whole, parts = found
    assert len(whole) == len(parts) > 20
    for key, moments in whole.items():  # the first moment is proportional to the gradient
        if moments["exp_avg"].ndim == 0:  # logit_scale: open_clip adds its gradient in each part
            continue
        torch.testing.assert_close(parts[key]["exp_avg"], moments["exp_avg"], rtol=1e-4, atol=1e-8)


def test_every_coca_of_open_clip_is_known_by_its_name() -> None:
    import open_clip

    found = []
    for name in open_clip.list_models():
        config = open_clip.get_model_config(name)
        assert is_coca(name, None) == is_coca(name, config)
        if is_coca(name, config) and not name.startswith("coca-"):  # those of other tests
            check_coca(TrainSettings(), name, config)
            found.append(name)
    assert len(found) >= 4


@pytest.mark.parametrize(
    ("file", "config", "changes", "told"),
    [
        ("x", CLIP, {"caption_loss_weight": 1.0}, "--caption-loss-weight: x is not a CoCa model"),
        ("x", CLIP, {"open_clip": ["--coca-caption-loss-weight", "1"]}, "x is not a CoCa model"),
        ("my-coca", CLIP, {}, "no multimodal_cfg. Rename the file"),
        ("x", COCA, {"loss": "siglip"}, "--loss siglip: coca-x is a CoCa model"),
        ("x", COCA, {"open_clip": ["--siglip"]}, "--siglip: open_clip does not support it"),
        ("x", COCA, {"open_clip": ["--lock-image"]}, "--lock-image: open_clip does not support it"),
        ("x", COCA, {"open_clip": ["--distill-model", "RN50", "--distill-pretrained", "openai"]},
         "--distill-model: open_clip does not support it for CoCa"),
        ("x", COCA, {"caption_loss_weight": 0.0, "contrastive_loss_weight": 0.0}, "both losses"),
        ("x", COCA, {"caption_loss_weight": 1.0, "open_clip": ["--coca-caption-loss-weight=1"]},
         "conflicts with --caption-loss-weight"),
        ("x", COCA | {"multimodal_cfg": COCA["multimodal_cfg"] | {"width": 32}}, {},
         "multimodal_cfg.width is 32, but text_cfg.width is 16"),
        ("x", COCA | {"multimodal_cfg": {"width": 16}}, {}, "multimodal_cfg.context_length is 77"),
        ("x", COCA | {"vision_cfg": []}, {}, "expected a mapping as vision_cfg"),
        ("x", COCA | {"text_cfg": CLIP["text_cfg"]}, {}, "needs text_cfg.output_tokens: true"),
    ],
)  # fmt: skip
def test_what_open_clip_would_do_wrong_with_a_coca_is_refused(
    shards: ExportedShards, tmp_path: Path, file: str, config: Any, changes: Any, told: str
) -> None:
    settings = settings_of(tmp_path / f"{file}.json", config, **changes)
    with pytest.raises(UserError, match=told) as error:
        train(settings, shards, str(tmp_path / "run"))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_a_default_loss_weight_that_is_given_is_the_same_run(
    shards: ExportedShards, tmp_path: Path
) -> None:
    """It resumes a run without it, and the other way round."""
    plain = about_run(settings_of(tmp_path / "x.json", COCA), shards)
    given = settings_of(
        tmp_path / "x.json", COCA, caption_loss_weight=2.0, contrastive_loss_weight=1.0
    )
    assert about_run(given, shards) == plain
    assert (
        about_run(settings_of(tmp_path / "x.json", COCA, caption_loss_weight=1.0), shards) != plain
    )
    run = tmp_path / "run"
    train(given, shards, str(run))
    about = json.loads((run / "run.json").read_text())
    about["settings"]["caption_loss_weight"] = 2.0  # as development versions wrote it
    (run / "run.json").write_text(json.dumps(about))
    train(settings_of(tmp_path / "x.json", COCA), shards, str(run))

"""Short names of models, and the restriction of the demo's models to the embedded pool."""

import os
from pathlib import Path

import pytest
from samples import write_pool

import capmix
from capmix.caption.settings import CaptionSettings
from capmix.cli.main import main
from capmix.models.known import KNOWN, chosen_model, full_name
from capmix.models.registry import CAPTIONERS, SCORERS, find_backend
from capmix.pipeline.config import load_pipeline
from capmix.score.settings import ScoreSettings

BLIP2 = "Salesforce/blip2-opt-2.7b"


@pytest.fixture
def pool(tmp_path: Path) -> str:
    return str(write_pool(tmp_path / "photos", shards=2, samples=2))


@pytest.mark.parametrize(
    ("command", "start"),
    [
        (
            "caption {pool} --work {work} --source blip2",
            "caption: choose a captioner with --model,",
        ),
        ("score {pool} --work {work}", "score: choose a scorer with --model,"),
        ("plan {pool}", "plan: choose a captioner with --model,"),
        ("plan {pool} --model field:caption", "plan: choose a scorer with --scorer,"),
        ("run {file}", "caption.blip2: choose a captioner with model,"),
    ],
)
def test_a_real_pool_is_not_given_the_demos_model(
    pool: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, start: str
) -> None:
    file, work = tmp_path / "p.yaml", tmp_path / "w"
    file.write_text(f"pool: {pool}\nwork: {work}\ncaption: {{blip2: {{}}}}\n")
    assert main(command.format(pool=pool, work=work, file=file).split()) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert start in line
    assert "`capmix models` lists them" in line
    assert not (work / "captions").exists()


def test_images_in_memory_need_a_model() -> None:
    with pytest.raises(capmix.UserError, match=r"caption_images: choose a captioner with model=, "):
        capmix.caption_images([])


def test_only_the_embedded_pool_has_default_models(tmp_path: Path) -> None:
    file = tmp_path / "p.yaml"
    file.write_text("pool: embedded\nwork: w\ncaption: {a: {top_k: 3}}\nscore:\n")
    pipeline = load_pipeline(str(file))
    assert pipeline.caption["a"].model == "mini"
    assert pipeline.score_settings().name == "mini"
    file.write_text("pool: {a: embedded, b: ./photos}\nwork: w\nscore:\n")
    with pytest.raises(capmix.UserError, match="score: choose a scorer"):
        load_pipeline(str(file))


def test_the_demos_model_warns_on_any_other_pool(caplog: pytest.LogCaptureFixture) -> None:
    assert chosen_model(CAPTIONERS, "mini", "embedded", "caption") == "mini"
    assert not caplog.records
    assert chosen_model(CAPTIONERS, "mini", "./photos", "caption") == "mini"
    (record,) = caplog.records
    assert record.getMessage().startswith("caption: mini is the demo's toy model")


def test_topics_are_left_out_without_a_text_tower(pool: str, tmp_path: Path) -> None:
    work = capmix.open(pool, work=str(tmp_path / "w"))
    assert work.measure(sample=4)["coverage"] is None


def test_a_short_name_is_the_same_settings_as_the_id() -> None:
    assert CaptionSettings(model="blip2") == CaptionSettings(model=BLIP2)
    assert CaptionSettings(model="vllm:blip2").model == f"vllm:{BLIP2}"
    short = ScoreSettings(model="clip-l14")
    assert short == ScoreSettings(model="ViT-L-14-quickgelu/openai")
    assert short.name == "vit-l-14-quickgelu-openai"  # the folder of its scores
    assert ScoreSettings(model="datacomp-l14").model == "ViT-L-14/datacomp_xl_s13b_b90k"
    for one in ("./blip2", "blip3", "mini", "field:blip2", BLIP2, "clip-l14", "vllm:mini"):
        assert full_name(CAPTIONERS, one) == one


def test_every_known_model_exists_in_its_backend() -> None:
    import open_clip
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as CLASSES,
    )

    kinds = {"blip", "blip-2", "git", "florence2", "smolvlm", "qwen3_vl", "paligemma", "llava"}
    assert kinds <= set(CLASSES)
    names = [(one.group, one.name) for one in KNOWN]
    assert len(set(names)) == len(names)
    for one in KNOWN:
        extra = find_backend(one.group, one.model).extra
        assert extra in ("transformers", "open_clip")
        if extra == "open_clip":
            architecture, _, tag = one.model.removeprefix("open_clip:").partition("/")
            about = open_clip.get_pretrained_cfg(architecture, tag)
            has = bool(open_clip.get_model_config(architecture).get("quick_gelu", False))
            assert bool(about.get("quick_gelu", False)) == has, one.name
            assert os.path.dirname(about["hf_hub"]) == one.hub_id
        else:
            assert one.model.removeprefix("transformers:") == one.hub_id
    assert {one.group for one in KNOWN} == {CAPTIONERS, SCORERS}


def test_the_page_of_the_models_is_the_table() -> None:
    page = (Path(__file__).parents[2] / "docs/commands/models.md").read_text("utf-8")
    for one in KNOWN:
        (line,) = [line for line in page.splitlines() if line.startswith(f"| `{one.name}` |")]
        about = (one.model, one.about, f"{one.gpu_gb} GB", one.licence, one.prompt or "")
        assert all(part in line for part in about), line

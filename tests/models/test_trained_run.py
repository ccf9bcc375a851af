"""A training run, or a checkpoint with a config file, is a captioner and a scorer."""

import gzip
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from hostile import Hostile
from safetensors.torch import save_file
from samples import image_bytes, write_pool
from tiny_runs import NANO, NANO_COCA, random_coca, train_run, write_config

import capmix
from capmix.cli.main import main
from capmix.errors import UserError
from capmix.evaluation.results import evaluate, results_folder
from capmix.models.architectures import know_model, read_config
from capmix.models.open_clip import LocalModel, load_open_clip, local_model
from capmix.models.open_clip_tokens import BpeTokenizer, open_clip_tokenizer
from capmix.models.vocabulary import MAX_BYTES
from capmix.score.backends.open_clip import OpenClipScorer
from capmix.score.settings import ScoreSettings

TEXTS = ["a red cat", "The DOG &amp; cat", "word " * 30, "été", ""]
CPU = {"device": "cpu", "dtype": "float32"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two configs and three runs: `coca`, `clip` and `siglip`."""
    folder = tmp_path_factory.mktemp("made")
    coca = write_config(folder / "configs", "coca_nano", NANO_COCA)
    clip = write_config(folder / "configs", "nano", NANO)
    begun = random_coca(folder / "configs/begun.safetensors")
    train_run(folder, coca, folder / "RUNS/coca", open_clip=begun)
    train_run(folder, clip, folder / "RUNS/clip")
    train_run(folder, clip, folder / "RUNS/siglip", loss="siglip")
    return folder


@pytest.fixture
def place(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of `made` as current directory, with a pool."""
    shutil.copytree(made, tmp_path / "place")
    monkeypatch.chdir(tmp_path / "place")
    write_pool(tmp_path / "place/pool", 1, 4)
    return tmp_path / "place"


def told(command: str, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of a command that fails."""
    capsys.readouterr()
    assert main(command.split()) == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


def caption(run: str, more: str = "") -> str:
    options = f"--device cpu --source s --temperature 0 --max-tokens 6 {more}"
    return f"caption pool --work w --model {run} {options}"


def score(run: str, more: str = "") -> str:
    return f"score pool --work w --model {run} --device cpu {more}"


def plain(made: Path, name: str, run: str) -> tuple[Any, Any, Any]:
    """Load a checkpoint with open_clip alone."""
    config = json.loads((made / f"configs/{name}.json").read_text())
    options = config["text_cfg"]["tokenizer_kwargs"]
    options["bpe_path"] = str(made / "configs/small.txt.gz")
    know_model(f"plain_{name}", config)
    bias = {"init_logit_bias": 0.0} if run == "siglip" else {}
    model, _, transform = open_clip.create_model_and_transforms(
        f"plain_{name}", str(made / f"RUNS/{run}/checkpoints/epoch_latest.pt"), **bias
    )
    return model.eval(), transform, open_clip.get_tokenizer(f"plain_{name}")


@pytest.mark.parametrize(("run", "name"), [("clip", "nano"), ("siglip", "nano"),
                                           ("coca", "coca_nano")])  # fmt: skip
def test_a_run_scores_like_plain_open_clip(made: Path, run: str, name: str) -> None:
    model, _, tokenizer = plain(made, name, run)
    scorer = OpenClipScorer(ScoreSettings(model=f"run:{made}/RUNS/{run}", **CPU))
    tokens = scorer.tokenize(TEXTS)
    assert torch.equal(torch.from_numpy(np.stack(tokens.inputs)), tokenizer(TEXTS))
    assert tokens.truncated == [False, False, True, False, False]
    assert isinstance(open_clip_tokenizer(tokenizer), BpeTokenizer)
    with torch.inference_mode():
        expected = model.encode_text(tokenizer(TEXTS), normalize=True).numpy()
    assert np.abs(scorer.encode_tokens(tokens.inputs) - expected).max() < 1e-5


def test_a_run_captions_and_scores_a_pool(place: Path) -> None:
    assert main(caption("run:RUNS/coca").split()) == 0
    assert main(score("run:RUNS/coca").split()) == 0
    work = capmix.open(work="w")
    assert (place / "w/scores/run-coca/s/00000.parquet").exists()
    marker = work.store.read_marker("captions/s/00000")
    assert marker is not None
    assert marker.config["model"] == "run:coca"
    assert len(marker.config["weights"]) == 16
    images = [image_bytes(1)]
    options = {"device": "cpu", "temperature": 0, "max_tokens": 6}
    found = capmix.caption_images(images, model="run:RUNS/coca", **options)
    assert found == capmix.caption_images(images, model="open_clip:run:RUNS/coca", **options)
    assert found == work.caption_images(images, source="s")


def test_a_run_measures_topics_and_computes_cliploss(place: Path) -> None:
    assert main([*score("run:RUNS/coca").split(), "--save-embeddings"]) == 0
    work = capmix.open(work="w")
    found = work.measure(model="run:RUNS/coca", topics=2, map_points=10, device="cpu")
    assert len(found["coverage"]["topics"]) == 2
    work.annotate(method="cliploss", model="run:RUNS/coca", device="cpu")
    assert any(name.startswith("cliploss_") for name in work.columns())


def test_a_run_is_a_model_of_pipeline_files_and_of_plan(place: Path) -> None:
    (place / "p.yaml").write_text(
        "pool: pool\nwork: w\n"
        "caption: {s: {model: 'run:RUNS/coca', device: cpu, max_tokens: 6}}\n"
        "score: {model: 'run:RUNS/clip', device: cpu}\n"
    )
    assert main(["run", "p.yaml"]) == 0
    assert (place / "w/scores/run-clip/s/00000.parquet").exists()
    options = "--model run:RUNS/coca --scorer run:RUNS/siglip --device cpu --samples 2"
    assert main(f"plan pool {options}".split()) == 0


def test_a_run_may_move_but_other_weights_make_its_parts_outdated(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(caption("run:RUNS/coca").split()) == 0
    assert main(score("run:RUNS/coca", "--save-embeddings").split()) == 0
    parts = [path for path in place.glob("w/*/**/*.parquet") if path.is_file()]
    before = {path: path.stat().st_mtime_ns for path in parts}
    assert len(before) >= 3
    shutil.move(place / "RUNS/coca", place / "moved/coca")
    shutil.rmtree(place / "configs")
    assert main(caption(f"run:{place}/moved/coca").split()) == 0
    assert main(score("run:moved/coca/", "--save-embeddings").split()) == 0
    assert {path: path.stat().st_mtime_ns for path in parts} == before

    shutil.rmtree(place / "moved")
    config = write_config(place / "configs", "coca_nano", NANO_COCA)
    options = random_coca(place / "configs/begun.safetensors")
    train_run(place, config, place / "moved/coca", seed=1, open_clip=options)
    assert "weights" in told(caption("run:moved/coca"), capsys)
    assert main(score("run:moved/coca", "--save-embeddings").split()) == 0
    again = {path for path in parts if path.stat().st_mtime_ns != before[path]}
    folders = {str(path.parent.relative_to(place / "w")) for path in again}
    assert folders >= {"scores/run-coca/raw", "scores/run-coca/s", "embeddings/run-coca/image"}
    assert "captions/s" not in folders


def test_the_identity_follows_config_and_merges(place: Path) -> None:
    file = "RUNS/clip/checkpoints/epoch_latest.pt"
    name = f"configs/nano.json/{file}"

    def digest(name: str) -> str:
        found = local_model(name)
        assert isinstance(found, LocalModel)
        return found.digest()

    before = digest(name)
    assert digest(f"configs/nano.json/{place}/{file}") == before == digest("run:RUNS/clip")
    write_config(place / "other", "nano", NANO)
    assert digest(f"other/nano.json/{file}") == before
    write_config(place / "configs", "nano", NANO | {"quick_gelu": True})
    quick = digest(name)
    (place / "other/small.txt.gz").write_bytes(gzip.compress(b"#\nc a\n"))
    assert len({before, quick, digest(f"other/nano.json/{file}")}) == 3


def test_the_identity_follows_every_byte_of_the_weights(place: Path) -> None:
    found = set()
    for data in (bytes(5_000_000), bytes(2_500_000) + b"x" + bytes(2_499_999)):
        Path("w.safetensors").write_bytes(data)
        local = local_model("configs/nano.json/w.safetensors")
        assert local is not None
        found.add(local.digest())
    assert len(found) == 2


def test_a_run_without_a_copy_of_its_merges_is_resumed_and_used(place: Path) -> None:
    """As an older capmix wrote it, with the full path of the merges in the config."""
    text = NANO["text_cfg"] | {"tokenizer_kwargs": {"bpe_path": f"{place}/configs/small.txt.gz"}}
    config = write_config(place / "configs", "old", NANO | {"text_cfg": text})
    train_run(place, config, place / "RUNS/old")
    about = json.loads(Path("RUNS/old/run.json").read_text())
    digest = about.pop("tokenizer")
    Path("RUNS/old/run.json").write_text(json.dumps(about))
    Path("RUNS/old/bpe_merges.txt.gz").unlink()
    assert load_open_clip("run:RUNS/old", "cpu", torch.float32)[2].vocab_size == 521
    train_run(place, config, place / "RUNS/old")  # it is finished
    unfinished(place / "RUNS/old")
    train_run(place, config, place / "RUNS/old")
    assert json.loads(Path("RUNS/old/run.json").read_text())["tokenizer"] == digest
    (place / "configs/small.txt.gz").unlink()
    assert load_open_clip("run:RUNS/old", "cpu", torch.float32)[2].vocab_size == 521


def test_other_merges_are_another_run(place: Path) -> None:
    (place / "configs/small.txt.gz").write_bytes(gzip.compress(b"#\nc a\n"))
    with pytest.raises(UserError, match="contains a run with different .*tokenizer"):
        train_run(place, place / "configs/nano.json", place / "RUNS/clip")


def test_a_siglip_checkpoint_keeps_its_bias(place: Path) -> None:
    file = "RUNS/siglip/checkpoints/epoch_latest.pt"
    state = torch.load(file, weights_only=True)["state_dict"]
    save_file(state, "w.safetensors")
    for name in ("run:RUNS/siglip", f"configs/nano.json/{file}", "configs/nano.json/w.safetensors"):
        model, _, _ = load_open_clip(name, "cpu", torch.float32)
        assert torch.equal(model.logit_bias, state["logit_bias"])
    assert main(score("run:RUNS/siglip").split()) == 0  # only the architecture's name counts


def test_an_architecture_may_be_a_config_file(place: Path) -> None:
    for name, run in (("nano", "clip"), ("coca_nano", "coca")):
        state = torch.load(f"RUNS/{run}/checkpoints/epoch_latest.pt", weights_only=True)
        save_file(state["state_dict"], f"configs/{run}.safetensors")
        weights = {}
        for file in (f"configs/{run}.safetensors", f"{place}/configs/{run}.safetensors"):
            model, _, tokenizer = load_open_clip(
                f"configs/{name}.json/{file}", "cpu", torch.float32
            )
            weights[file] = model.state_dict()
            assert tokenizer.vocab_size == NANO["text_cfg"]["vocab_size"]
        for found in weights.values():
            assert all(torch.equal(found[key], state["state_dict"][key]) for key in found)
    coca = "configs/coca_nano.json/configs/coca.safetensors"
    assert main(caption(f"open_clip:{coca}").split()) == 0
    assert main(score("configs/nano.json/configs/clip.safetensors").split()) == 0


def test_a_config_file_replaces_no_model_of_the_same_name(place: Path) -> None:
    before = open_clip.get_model_config("ViT-B-32")
    write_config(place / "configs", "ViT-B-32", NANO)
    file = "RUNS/clip/checkpoints/epoch_latest.pt"
    load_open_clip(f"configs/ViT-B-32.json/{file}", "cpu", torch.float32)
    assert open_clip.get_model_config("ViT-B-32") == before


def unfinished(run: Path) -> None:
    about = json.loads((run / "run.json").read_text())
    del about["finished"]
    (run / "run.json").write_text(json.dumps(about))


def test_a_run_that_cannot_be_used_is_one_line(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unfinished(place / "RUNS/siglip")
    shutil.copytree("RUNS/siglip", "RUNS/new")
    (place / "RUNS/new/checkpoints/epoch_latest.pt").unlink()
    shutil.copytree("RUNS/clip", "RUNS/bad")
    (place / "RUNS/bad/bpe_merges.txt.gz").write_bytes(gzip.compress(b"#\nc a\n"))
    errors = {
        "nowhere": "nowhere: no run.json; expected an output directory of `capmix train`",
        "RUNS/new": "RUNS/new: no checkpoint yet; `capmix train` writes ",
        "RUNS/siglip": "RUNS/siglip: training is not finished, so the weights still change; rerun",
        "RUNS/bad": "bpe_merges.txt.gz is damaged",
        "": "expected a directory of `capmix train`, for example run:RUNS/a",
    }
    for run, message in errors.items():
        assert message in told(score(f"run:{run}"), capsys)
        assert message in told(caption(f"run:{run}"), capsys)
    assert "run:RUNS/clip: cannot write captions" in told(caption("run:RUNS/clip"), capsys)
    file = "configs/nano.json/nowhere.pt"
    assert "'nowhere.pt' is not a file" in told(score(file), capsys)
    assert "nano2.json: not a readable JSON" in told(score("configs/nano2.json/x.pt"), capsys)


def test_eval_accepts_a_run_with_and_without_its_prefix(place: Path) -> None:
    unfinished(place / "RUNS/clip")
    for model in ("RUNS/clip", "run:RUNS/clip"):
        assert results_folder(model, None) == Path("RUNS/clip")
        assert len(evaluate(model, None, "embedded", device="cpu").lines) == 2


@pytest.mark.parametrize("form", ["run", "config"])
def test_a_pickle_in_a_checkpoint_runs_nothing(form: str, place: Path) -> None:
    file = "RUNS/clip/checkpoints/epoch_latest.pt"
    torch.save({"state_dict": Hostile(place / "proof")}, file)
    name = "run:RUNS/clip" if form == "run" else f"configs/nano.json/{file}"
    with pytest.raises(UserError, match="cannot be loaded"):
        load_open_clip(name, "cpu", torch.float32)
    assert not (place / "proof").exists()


def test_a_config_allows_no_code_and_writes_nothing(place: Path) -> None:
    about = json.loads((place / "RUNS/clip/run.json").read_text())
    text = NANO["text_cfg"] | {"tokenizer_kwargs": {"trust_remote_code": True}}
    config = write_config(place / "configs", "code", NANO | {"text_cfg": text})
    with pytest.raises(UserError, match="'trust_remote_code' is not supported"):
        read_config(config)
    for config in ({}, {"embed_dim": 1, "vision_cfg": {}, "text_cfg": []}):
        (place / "RUNS/clip/run.json").write_text(json.dumps(about | {"config": config}))
        with pytest.raises(UserError, match=r"run\.json"):
            local_model("run:RUNS/clip")
    hostile = about | {"config": NANO | {"text_cfg": text}}
    (place / "RUNS/clip/run.json").write_text(json.dumps(hostile))
    with pytest.raises(UserError, match="'trust_remote_code' is not supported"):
        local_model("run:RUNS/clip")
    outside = about | {"model": f"../../..{place}/outside"}
    (place / "RUNS/clip/run.json").write_text(json.dumps(outside))
    load_open_clip("run:RUNS/clip", "cpu", torch.float32)
    assert not (place / "outside.json").exists()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"#version", "not a gzip file"),
        (gzip.compress(bytes(MAX_BYTES + 1)), "has more than 64 MiB of text"),
        (gzip.compress(b"#\n" + b"c a\n" * 9), "vocab_size is 521, but .* has 524 ids"),
        (None, "no such file"),
    ],
    ids=["not gzip", "too much text", "too many merges", "no file"],
)
def test_merges_that_cannot_be_read_are_one_line(
    data: bytes | None, message: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "configs/small.txt.gz").unlink()
    if data is not None:
        (place / "configs/small.txt.gz").write_bytes(data)
    name = "configs/nano.json/RUNS/clip/checkpoints/epoch_latest.pt"
    assert re.search(message, told(score(name), capsys))
    with pytest.raises(UserError, match=message):
        train_run(place, place / "configs/nano.json", place / "RUNS/another")

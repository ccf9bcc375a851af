"""Untrusted model folders and checkpoints."""

import io
import json
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hostile import Hostile
from samples import write_pool
from tiny_clip import CLIP, open_clip_folder
from tiny_models import blip, clip, llava

from capmix.caption.backends.transformers import TransformersCaptioner
from capmix.caption.settings import CaptionSettings
from capmix.cli.main import main
from capmix.errors import UserError
from capmix.models.open_clip import load_open_clip
from capmix.score.backends.transformers import TransformersScorer
from capmix.score.settings import ScoreSettings
from capmix.training.model import know_model
from capmix.training.pairs import ExportedShards
from capmix.training.run import RunFolder
from capmix.training.scales import TrainSettings
from capmix.training.train import train

NANO = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 16, "patch_size": 8, "width": 16, "layers": 1, "head_width": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


def pickled_captioner(folder: Path, proof: Path) -> Callable[[], Any]:
    place = blip(folder)
    (place / "model.safetensors").unlink()
    torch.save({"w": Hostile(proof)}, place / "pytorch_model.bin")
    return lambda: TransformersCaptioner(CaptionSettings(model=str(place), device="cpu"))


def pickled_scorer(folder: Path, proof: Path) -> Callable[[], Any]:
    place = clip(folder)
    (place / "model.safetensors").unlink()
    torch.save({"w": Hostile(proof)}, place / "pytorch_model.bin")
    return lambda: TransformersScorer(ScoreSettings(model=f"transformers:{place}", device="cpu"))


def pickled_open_clip_folder(folder: Path, proof: Path) -> Callable[[], Any]:
    name = open_clip_folder(folder, CLIP)
    (folder / "open_clip_model.safetensors").unlink()
    torch.save({"w": Hostile(proof)}, folder / "open_clip_pytorch_model.bin")
    return lambda: load_open_clip(name, "cpu", torch.float32)


def pickled_checkpoint(folder: Path, proof: Path) -> Callable[[], Any]:
    know_model("nano-of-security", NANO)
    folder.mkdir()
    torch.save({"state_dict": Hostile(proof)}, folder / "epoch_1.pt")
    return lambda: load_open_clip(f"nano-of-security/{folder}/epoch_1.pt", "cpu", torch.float32)


def plain_pickle(folder: Path, proof: Path) -> Callable[[], Any]:
    know_model("nano-of-security", NANO)
    folder.mkdir()
    (folder / "epoch_1.pt").write_bytes(pickle.dumps(Hostile(proof)))
    return lambda: load_open_clip(f"nano-of-security/{folder}/epoch_1.pt", "cpu", torch.float32)


@pytest.mark.parametrize(
    "made",
    [pickled_captioner, pickled_scorer, pickled_open_clip_folder, pickled_checkpoint, plain_pickle],
)
@pytest.mark.filterwarnings("ignore")
def test_a_pickle_among_weights_runs_nothing(
    made: Callable[[Path, Path], Callable[[], Any]], tmp_path: Path
) -> None:
    proof = tmp_path / "proof"
    load = made(tmp_path / "model", proof)
    with pytest.raises(UserError, match="cannot be loaded"):
        load()
    assert not proof.exists()


def nano_settings(folder: Path, **changes: Any) -> TrainSettings:
    (folder / "nano.json").write_text(json.dumps(NANO))
    return TrainSettings(
        model=str(folder / "nano.json"), batch_size=4, samples=8, checkpoints=2, log_every=1,
        workers=0, device="cpu", **changes,
    )  # fmt: skip


def test_a_training_run_does_not_go_on_from_a_pickle(tmp_path: Path) -> None:
    """Someone else may have placed one in the run's directory."""
    shards = ExportedShards([str(write_pool(tmp_path / "shards", 1, 8))])
    settings, run = nano_settings(tmp_path), RunFolder(tmp_path / "run")
    train(settings, shards, str(run.path))
    about = run.about()
    assert about is not None
    about.pop("finished")
    (run.path / "run.json").write_text(json.dumps(about))
    hostile = Hostile(tmp_path / "proof")
    torch.save({"epoch": 1, "state_dict": hostile, "optimizer": {}}, run.checkpoint)
    with pytest.raises(Exception, match="[Ww]eights"):
        train(settings, shards, str(run.path))
    assert not (tmp_path / "proof").exists()


def with_code(folder: Path, proof: Path) -> Path:
    """The folder of a model whose config names classes in a file of the folder."""
    (folder / "mine.py").write_text(f"import os\nos.mkdir({str(proof)!r})\n")
    names = ("AutoConfig", "AutoProcessor", "AutoModel", "AutoModelForImageTextToText",
             "AutoImageProcessor")  # fmt: skip
    for name in ("config.json", "processor_config.json", "preprocessor_config.json"):
        path = folder / name
        about = json.loads(path.read_text()) if path.exists() else {}
        kept = {k: v for k, v in about.items() if not k.endswith(("_class", "_processor_type"))}
        kept |= {"auto_map": dict.fromkeys(names, "mine.Mine"), "model_type": "mine"}
        path.write_text(json.dumps(kept))
    return folder


def test_code_in_a_model_folder_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no prompt to allow it, either."""
    proof = tmp_path / "proof"
    folder = with_code(blip(tmp_path / "blip"), proof)
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 9))
    with pytest.raises(UserError, match="custom code"):
        TransformersCaptioner(CaptionSettings(model=str(folder), device="cpu"))
    assert not proof.exists()


def test_remote_code_is_off_and_its_option_is_called_a_danger(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert CaptionSettings().trust_remote_code is False
    assert main(["caption", "--help"]) == 0
    assert re.search(r"--trust-remote-code\s+DANGER: run Python code", capsys.readouterr().out)


def test_a_chat_template_stays_in_its_sandbox(tmp_path: Path) -> None:
    folder, proof = llava(tmp_path / "llava"), tmp_path / "proof"
    template = "{{ cycler.__init__.__globals__.os.mkdir('PROOF') }}<image>"
    (folder / "chat_template.jinja").write_text(template.replace("PROOF", str(proof)))
    with pytest.raises(Exception, match="unsafe"):
        TransformersCaptioner(CaptionSettings(model=str(folder), device="cpu"))
    assert not proof.exists()


def test_openvino_reports_nothing_to_its_vendor() -> None:
    """Its telemetry module is not imported; the converter uses its stub."""
    code = (
        "from capmix.mini.image_tower import _compiled_model\n"
        "_compiled_model()\n"
        "from openvino.tools import ovc\n"
        "print(type(ovc.telemetry).__module__)"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=200
    )
    assert found.stdout.strip() == "openvino.tools.ovc.telemetry_stub", found.stderr

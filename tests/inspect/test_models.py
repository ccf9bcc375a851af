"""`capmix models` lists the short names with their models, and whether they are downloaded."""

from pathlib import Path

import pytest
from huggingface_hub import constants

from capmix.cli.main import main
from capmix.inspect import models
from capmix.models.known import KNOWN


def test_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = tmp_path / "models--Salesforce--blip2-opt-2.7b/snapshots/0/model.safetensors"
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"x")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    missing = {"open_clip"}
    monkeypatch.setattr(models, "find_spec", lambda name: None if name in missing else name)
    assert main(["models"]) == 0
    out = capsys.readouterr().out
    rows = {line.split()[0]: line for line in out.splitlines() if line.strip()}
    assert {one.name for one in KNOWN} <= rows.keys()
    assert "3.7 B  12 GB  MIT" in rows["blip2"]
    assert " downloaded " in rows["blip2"]
    assert rows["blip2"].endswith("Salesforce/blip2-opt-2.7b")
    assert " not downloaded " in rows["blip"]
    assert "pip install 'capmix[open_clip]'" in rows["datacomp-l14"]

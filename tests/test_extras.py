"""A command whose extra is not installed says so in one line, before it does any work."""

from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path

import pytest
from samples import write_pool

from capmix.cli.main import main

PIPELINE = """
pool: {pool}
work: {work}
score: {{model: mini}}
mix: {{recipes: [raw]}}
probe: {{evalsets: [embedded]}}
report: {{}}
"""


@pytest.fixture
def absent(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Modules named in this list appear not to be installed."""
    names: list[str] = []

    def found(name: str, package: str | None = None) -> ModuleSpec | None:
        return None if name in names else find_spec(name, package)

    monkeypatch.setattr("capmix.models.registry.find_spec", found)
    monkeypatch.setattr("capmix.evaluation.embedded.find_spec", found)
    return names


def test_the_embedded_sets_are_in_a_package_of_their_own(
    absent: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    absent.append("capmix_tuxpaint")
    assert main(["eval", "ViT-B-32", "--evalsets", "embedded"]) == 2
    error = capsys.readouterr().err.strip()
    assert error == (
        "capmix: the evaluation sets `embedded` are in the package capmix-tuxpaint: "
        "pip install 'capmix[demo]'"
    )


def test_only_figures_need_matplotlib(
    absent: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pool, work = str(write_pool(tmp_path / "pool")), str(tmp_path / "work")
    assert main(["mix", pool, "--work", work, "--recipe", "raw", "--quiet"]) == 0
    absent.append("matplotlib")
    assert main(["report", "--work", work, "--figures", "f"]) == 2
    assert "report needs matplotlib: pip install 'capmix[report]'" in capsys.readouterr().err
    assert main(["report", "--work", work]) == 0


@pytest.mark.parametrize("module", ["jinja2", "capmix_tuxpaint", "openvino"])
def test_a_pipeline_names_the_extra_before_its_first_stage(
    module: str, absent: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pool, work = write_pool(tmp_path / "pool"), tmp_path / "work"
    file = tmp_path / "pipeline.yaml"
    file.write_text(PIPELINE.format(pool=pool, work=work))
    absent.append(module)
    assert main(["run", str(file)]) == 2
    assert "pip install 'capmix[" in capsys.readouterr().err
    assert not work.exists()

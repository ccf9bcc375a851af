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


@pytest.mark.parametrize(
    ("module", "arguments", "expected"),
    [
        ("jinja2", ["report"], "report needs jinja2: pip install 'capmix[report]'"),
        ("matplotlib", ["report", "--figures", "f"], "matplotlib: pip install 'capmix[report]'"),
        ("starlette", ["view"], "view needs starlette: pip install 'capmix[view]'"),
        (
            "capmix_tuxpaint",
            ["eval", "ViT-B-32", "--evalsets", "embedded"],
            "the evaluation sets `embedded` are in the package capmix-tuxpaint: "
            "pip install 'capmix[demo]'",
        ),
    ],
)
def test_a_command_names_the_extra_that_it_needs(
    module: str,
    arguments: list[str],
    expected: str,
    absent: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pool, work = str(write_pool(tmp_path / "pool")), str(tmp_path / "work")
    assert main(["mix", pool, "--work", work, "--recipe", "raw", "--quiet"]) == 0
    absent.append(module)
    place = [] if arguments[0] == "eval" else ["--work", work]
    assert main([*arguments, *place]) == 2
    error = capsys.readouterr().err.strip()
    assert error.endswith(expected)
    assert "\n" not in error


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

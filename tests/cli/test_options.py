"""A Settings field is enough to define a command-line option."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cyclopts import App
from samples import write_pool

from capmix.cli.main import COMMANDS, main, make_app
from capmix.cli.options import Pool, command, only
from capmix.cli.tokens import FLAGS, VALUED
from capmix.settings.base import Settings, option
from capmix.storage.work_directory import find_work


class Sampling(Settings):
    top_p: float = option(1.0, "Nucleus sampling.", group="Sampling", gt=0, le=1)
    flag: bool = option(False, "A flag.")
    on: bool = option(True, "On unless refused.")
    size: int | None = option(None, "A size.", ge=1)
    tags: list[str] = option(list, "Tags.", repeats=True)


def run(*tokens: str) -> dict[str, Any]:
    seen: dict[str, Any] = {}

    @command
    def try_it(pool: Pool = None, *, settings: Sampling) -> None:
        seen.update(pool=pool, settings=settings)

    app = App(name="test")
    app.command(try_it, name="try")
    app(["try", *tokens], exit_on_error=False, print_error=False, result_action="return_value")
    return seen


def test_fields_are_options() -> None:
    assert run() == {"pool": None, "settings": Sampling()}
    found = run("p", "--top-p", "0.9", "--flag", "--no-on", "--size", "3", "--tags=a", "--tags=b")
    assert found == {
        "pool": ["p"],
        "settings": Sampling(top_p=0.9, flag=True, on=False, size=3, tags=["a", "b"]),
    }


def test_some_fields_of_a_class() -> None:
    from typing import Annotated

    @command
    def try_it(*, settings: Annotated[Sampling, only("size")]) -> None:
        """Try."""

    app = App(name="test")
    app.command(try_it, name="try")
    names = [name for one in app["try"].assemble_argument_collection() for name in one.names]
    assert names == ["--size", *FLAGS, *VALUED]


@pytest.mark.parametrize("name", [one.name for one in COMMANDS])
def test_every_command_has_help_with_an_example(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([name, "-h"]) == 0
    out = capsys.readouterr().out
    assert f"Usage: capmix {name}" in out
    assert f"Example: capmix {name}" in out


@pytest.mark.parametrize("name", [one.name for one in COMMANDS])
def test_no_command_has_an_option_of_the_parsers_own(name: str) -> None:
    arguments = make_app()[name].assemble_argument_collection()
    names = [one for argument in arguments for one in argument.names]
    assert [one for one in names if one.startswith("--empty-")] == []


@pytest.mark.parametrize("name", [one.name for one in COMMANDS])
def test_every_option_is_in_the_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "-h"]) == 0
    out = capsys.readouterr().out
    arguments = make_app()[name].assemble_argument_collection()
    options = [max(argument.names, key=len) for argument in arguments if argument.parameter.show]
    assert [option for option in options if option.startswith("--") and option not in out] == []


def test_every_option_has_help() -> None:
    app = make_app()
    silent = [
        (one.name, argument.names)
        for one in COMMANDS
        for argument in app[one.name].assemble_argument_collection()
        if not argument.parameter.help
    ]
    assert silent == []


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (["cpation"], 'Did you mean "caption"?'),
        (["caption", "--soruce", "x"], "Did you mean --source?"),
        (["mix", "--recipe", "raw-topp"], "did you mean 'raw-top'?"),
        (["score", "--sources", "mni"], "did you mean 'mini'?"),
        (["mix", "--recipe", "r.yaml"], "did you mean 'raw_text'?"),
    ],
)
def test_misspelled_names_are_guessed(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tokens: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    write_pool(tmp_path / "pool", 1, 2)
    (tmp_path / "r.yaml").write_text(
        "{name: r, about: r, clauses: [{source: raw, where: raw_txt is not null}]}"
    )
    monkeypatch.setenv("CAPMIX_WORK", "w")
    assert main(["caption", "pool", "--source", "mini", "--model", "field:caption"]) == 0
    capsys.readouterr()
    assert main(tokens) == 2
    err = capsys.readouterr().err
    assert message in err
    assert len(err.strip().splitlines()) == 1 or err.count("capmix: ") == 1


def test_the_work_directory_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """--work, then CAPMIX_WORK, then the one that contains the current directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CAPMIX_WORK", raising=False)
    assert main(["mix", "--recipe", "raw"]) == 2
    pool = str(write_pool(tmp_path / "pool", 1, 2))
    assert main(["mix", pool, "--work", "w", "--recipe", "raw"]) == 0
    monkeypatch.chdir(tmp_path / "w/subsets")
    assert find_work(None) == str(tmp_path / "w")
    assert main(["status"]) == 0
    assert main(["mix", "--recipe", "raw", "--out", "again"]) == 0
    monkeypatch.setenv("CAPMIX_WORK", str(tmp_path / "other"))
    assert find_work(None) == str(tmp_path / "other")
    assert find_work("third") == "third"


def test_shells_complete_commands_and_options() -> None:
    for shell in ("bash", "zsh", "fish"):
        script = make_app().generate_completion(shell=shell)  # type: ignore[arg-type]
        assert "caption" in script
        assert "captions-per-image" in script


@pytest.mark.parametrize("tokens", [["--help"], ["--version"]])
def test_help_and_version_are_quick(tokens: list[str]) -> None:
    """CPU time, since wall time depends on the load: benchmarked at 0.2 s."""
    code = f"import time\nfrom capmix.cli.main import main\nmain({tokens!r})\n"
    code += "print(time.process_time())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout.splitlines()[-1]) < 0.45

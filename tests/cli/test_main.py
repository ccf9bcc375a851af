import re
import subprocess
import sys
from pathlib import Path

import pytest
from samples import image_bytes, write_pool

from capmix.cli.main import main


def test_help_imports_nothing_heavy() -> None:
    heavy = ["torch", "duckdb", "pyarrow", "numpy", "PIL", "openvino", "pydantic", "matplotlib"]
    code = (
        "import sys\nfrom capmix.cli.main import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        f"print([m for m in {heavy} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_every_stage_is_a_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_pool(tmp_path / "pool", shards=2, samples=4)
    monkeypatch.chdir(tmp_path)
    for command in (
        "caption pool --work w --source mini --model mini",
        "score pool --work w --sources raw,mini --model mini",
        "measure pool --work w",
        "mix pool --work w --recipe raw-top+synthetic --fraction 0.3 --explain",
        "export pool --work w --subset raw-top30+mini --out shards",
        "probe pool --work w --seeds 0,1",
        "report pool --work w",
        "recipes",
        "doctor",
    ):
        assert main(command.split()) == 0, command
    out, err = capsys.readouterr()
    assert err.count("the demo's toy model") == 2  # once for caption, once for score
    assert "distinct-3" in out
    assert "select coalesce" in out
    assert (tmp_path / "w/report/report.html").exists()


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("score nowhere --work w", "no such file"),
        ("caption pool --work w --source Raw", "source"),
        ("caption pool --work w --source raw", "choose another name"),
        ("caption pool --work w --source x --model gpt", "captioner gpt: cannot be loaded"),
        ("score pool --work w --sources blip2", "capmix caption"),
        ("mix pool --work w --recipe raw-top --fraction 30%", "above 0 and at most 1"),
        ("mix pool --work w --recipe raw-top --fraction 0", "above 0 and at most 1"),
        ("mix pool --work w --recipe raw-top --fraction 1.5", "above 0 and at most 1"),
        ("export pool --work w --subset nothing --out o", "capmix mix"),
        ("run missing.yaml", "pipeline missing.yaml: No such file or directory"),
        ("caption pool", "caption: --source is required; see `capmix caption --help`"),
        ("caption pool --source", "caption: --source requires a value; see `capmix caption"),
        ("eval", "eval: MODEL is required; see `capmix eval --help`"),
        ("view pool --work w --port 99999", "--port: expected a number of at most 65535"),
        ("mix pool --work w --recipe uid-list --uids list=no", "uid list no: No such file or"),
        ("mix pool --work w --recipe raw --exclude uid:no", "--exclude no: No such file or"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    message: str,
) -> None:
    write_pool(tmp_path / "pool", 1, 2)
    monkeypatch.chdir(tmp_path)
    assert main(command.split()) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("capmix: ")
    assert message in last


def test_a_work_directory_of_another_pool_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("one", "two"):
        write_pool(tmp_path / name, 1, 2)
    work = str(tmp_path / "w")
    assert main(["mix", str(tmp_path / "one"), "--work", work, "--recipe", "raw"]) == 0
    assert main(["mix", str(tmp_path / "two"), "--work", work, "--recipe", "raw"]) == 2
    assert "belongs to the pool" in capsys.readouterr().err


def test_other_settings_never_overwrite_captions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pool, work = str(write_pool(tmp_path / "p", 1, 2)), str(tmp_path / "w")
    caption = ["caption", pool, "--work", work, "--source", "mini", "--model", "mini"]
    assert main(caption) == 0
    assert main([*caption, "--temperature", "1.0"]) == 2
    assert "temperature 0.75 -> 1.0" in capsys.readouterr().err
    assert main([*caption, "--temperature", "1.0", "--force"]) == 0


def photos_with_pages(folder: Path, photos: int, pages: int) -> str:
    folder.mkdir()
    for i in range(photos):
        (folder / f"{i}.jpg").write_bytes(image_bytes(i))
        (folder / f"{i}.txt").write_text(f"picture {i}")
    for i in range(pages):
        (folder / f"page{i}.jpg").write_bytes(b"<html>not found</html>")
    return str(folder)


def test_one_bad_photo_of_a_small_folder_is_listed_and_does_not_stop_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = photos_with_pages(tmp_path / "photos", 12, 1)
    mix = ["mix", folder, "--work", str(tmp_path / "w"), "--recipe", "raw"]
    assert main(mix) == 0
    message = capsys.readouterr().err
    assert re.search(r"index: 12 images in .*, 1 failed \(not_an_image 1\), 0 dropped", message)
    assert (
        "index: 1 of 13 rows failed (not_an_image 1). Shard 00000, sample 'page0.jpg': " in message
    )
    assert message.rstrip().endswith(". `capmix failures` lists them all")
    assert main([*mix, "--max-failures", "0"]) == 2


def test_over_the_failure_budget_exits_2_and_keeps_the_neighbours(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = photos_with_pages(tmp_path / "photos", 3, 4)
    work = ["--work", str(tmp_path / "w"), "--source", "mini", "--model", "mini"]
    caption = ["caption", folder, *work]
    assert main(caption) == 2
    message = capsys.readouterr().err
    assert "4 of 7 rows failed (not_an_image 4), over the budget of 1.0%" in message
    assert "Shard 00000, sample 'page0.jpg': 22 bytes" in message
    assert main([*caption, "--max-failures", "0.6"]) == 0
    message = capsys.readouterr().err
    # The first run wrote the index and the captions, and reported their failures.
    for stage in ("index", "caption mini"):
        assert f"{stage}: 3 images already done, 4 failed (not_an_image 4), 0 dropped" in message
    assert "`capmix failures` lists them all" not in message


@pytest.mark.parametrize("value", ["5", "nan", "-1", "x"])
def test_a_budget_is_a_fraction(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["caption", "p", "--work", "w", "--source", "a", f"--max-failures={value}"]
    assert main(given) == 2
    assert "--max-failures" in capsys.readouterr().err


@pytest.mark.parametrize("place", ["", "x::y"])
def test_a_place_that_fsspec_would_take_for_another_is_refused(place: str, tmp_path: Path) -> None:
    pool = str(write_pool(tmp_path / "pool", 1, 1))
    assert main(["caption", pool, "--work", place, "--source", "a", "--model", "field:x"]) == 2


def test_a_field_that_no_sample_has_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pool = str(write_pool(tmp_path / "pool", 1, 2))
    work = ["--work", str(tmp_path / "w"), "--source", "a"]
    assert main(["caption", pool, *work, "--model", "field:captoin"]) == 2
    assert "no sample has a text in its field 'captoin'" in capsys.readouterr().err
    assert main(["caption", pool, *work, "--model", "field:caption", "--force"]) == 0

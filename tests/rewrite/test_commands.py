"""The command line, pipeline files and the pages that show texts."""

from pathlib import Path
from typing import Any

import pytest
from echoing_rewriter import MODEL
from samples import write_pool

from capmix.cli.main import main
from capmix.errors import UserError
from capmix.pipeline.config import load_pipeline
from capmix.pipeline.run import forecast_pipeline, run_pipeline
from capmix.workspace import open_workspace

PIPELINE = """
pool: {pool}
work: {work}
caption: {{tags: {{model: "field:caption"}}}}
rewrite:
  fused: {{from: [raw, tags], model: {model}, prompt: "{{raw}} and {{tags}}"}}
  sentences: {{from: fused, model: split, captions_per_image: 2}}
score: {{model: mini}}
mix: {{recipes: [raw]}}
"""


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    return write_pool(tmp_path / "p", 1, 3)


def test_the_command_line_writes_a_source_that_status_and_failures_know(
    pool: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    work = str(tmp_path / "w")
    command = ["rewrite", str(pool), "--work", work, "--source", "new", "--from", "raw"]
    options = ["--model", MODEL, "--prompt", "One {raw}", "--prompt", "Two {raw}", "--quiet"]
    assert main([*command, *options]) == 0
    opened = open_workspace(None, work)
    rows = opened.store.read_table("captions/new/00000.parquet").to_pylist()
    assert [row["text"].split()[0] for row in rows] == ["One", "Two"] * 3
    assert opened.status()["captions/new"].ok == 3
    capsys.readouterr()
    assert main(["failures", "--work", work, "--stage", "captions/new"]) == 0


def test_status_names_the_command_for_a_source_whose_input_has_changed(
    pool: Path, tmp_path: Path
) -> None:
    work = open_workspace(str(pool), str(tmp_path / "w"))
    for text in ("seen", "changed"):
        (tmp_path / "seen.csv").write_text(f"uid,text\n{1:032x},{text}\n")
        work.import_captions([str(tmp_path / "seen.csv")], source="seen")
        if text == "seen":
            work.rewrite("new", model=MODEL, from_="seen")
    expected = f"--source new --from seen --model {MODEL}"
    assert work.status().next == f"capmix rewrite --work {tmp_path / 'w'} {expected}"


def test_mix_refuses_rewritten_texts_whose_input_has_changed(pool: Path, tmp_path: Path) -> None:
    work = open_workspace(str(pool), str(tmp_path / "w"))
    for text in ("seen", "changed"):
        (tmp_path / "seen.csv").write_text(f"uid,text\n{1:032x},{text}\n")
        work.import_captions([str(tmp_path / "seen.csv")], source="seen")
        if text == "seen":
            work.rewrite("new", model=MODEL, from_="seen")
            assert len(work.mix("synthetic", synthetic="new")) == 1
    message = "captions/seen were written again .* Rerun `capmix rewrite --source new --from seen"
    with pytest.raises(UserError, match=message):
        work.mix("synthetic", synthetic="new")
    work.rewrite("new", model=MODEL, from_="seen")
    assert len(work.mix("synthetic", synthetic="new")) == 1


def of_second_shard(work: Path) -> list[Path]:
    """Return the part and the marker."""
    return [work / "captions/new/00001.parquet", work / ".markers/captions/new/00001.json"]


def test_mix_names_the_command_for_a_missing_part_of_rewritten_texts(tmp_path: Path) -> None:
    work = open_workspace(str(write_pool(tmp_path / "p", 2, 3)), str(tmp_path / "w"))
    work.rewrite("new", model=MODEL, prompt="{raw}")
    for file in of_second_shard(tmp_path / "w"):
        file.unlink()
    with pytest.raises(UserError, match="Run `capmix rewrite --source new --from raw .*` first"):
        work.mix("synthetic", synthetic="new")


def test_mix_refuses_rewritten_texts_of_two_settings(tmp_path: Path) -> None:
    """One of them is the default of captioners, the other that of rewriters."""
    work = open_workspace(str(write_pool(tmp_path / "p", 2, 3)), str(tmp_path / "w"))
    work.rewrite("new", model=MODEL, max_tokens=40)
    kept = {one: one.read_bytes() for one in of_second_shard(tmp_path / "w")}
    work.rewrite("new", model=MODEL, max_tokens=96, force=True)
    for path, data in kept.items():
        path.write_bytes(data)
    with pytest.raises(UserError, match="different settings.*max_tokens"):
        work.mix("synthetic", synthetic="new")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--from", "", "--model", MODEL], "rewrite: --from"),
        (["--from", "nosuch", "--model", MODEL], "no captions of source 'nosuch'"),
        ([], "--model is required"),
        (["--model", MODEL, "--preset", "fus"], "did you mean 'fuse'"),
        (["--model", MODEL, "--missing", "no"], "--missing"),
    ],
)
def test_wrong_options_are_one_line(
    pool: Path,
    tmp_path: Path,
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = ["rewrite", str(pool), "--work", str(tmp_path / "w"), "--source", "new"]
    assert main([*command, *arguments]) == 2
    (line,) = [one for one in capsys.readouterr().err.splitlines() if one.startswith("capmix:")]
    assert message in line


def test_a_pipeline_rewrites_between_captions_and_scores(pool: Path, tmp_path: Path) -> None:
    file = tmp_path / "p.yaml"
    file.write_text(PIPELINE.format(pool=pool, work=tmp_path / "w", model=MODEL))
    pipeline = load_pipeline(str(file))
    assert pipeline.score_settings().sources == ["raw", "tags", "fused", "sentences"]
    assert "then: rewrite, mix" in forecast_pipeline(pipeline)[-1]
    run_pipeline(pipeline)
    work = open_workspace(None, str(tmp_path / "w"))
    texts = work.store.read_table("captions/fused/00000.parquet")["text"].to_pylist()
    assert [text.partition(" #")[0] for text in texts] == [
        f"picture {i} and picture {i}" for i in range(3)
    ]
    assert work.sources() == ["raw", "fused", "sentences", "tags"]
    assert all((tmp_path / "w/scores/mini" / one).is_dir() for one in work.sources())


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("{a: {model: split, from: a}}", "rewrite.a: the name of another source"),
        ("{a: {model: split, prompt: '{b}'}}", "rewrite.a: --prompt: {b} is not among"),
        ("{raw: {model: split}}", "rewrite.raw: source raw is reserved"),
        ("{a: {from: raw}}", "rewrite.a.model: required, but missing"),
        ("{a: {model: split, form: raw}}", "rewrite.a.form: unknown setting"),
    ],
)
def test_an_invalid_section_is_an_error_before_any_stage(
    tmp_path: Path, section: str, message: str
) -> None:
    file = tmp_path / "p.yaml"
    file.write_text(f"pool: x\nwork: y\nrewrite: {section}\n")
    with pytest.raises(UserError) as error:
        load_pipeline(str(file))
    assert message in str(error.value)


def test_samples_are_shown_with_the_texts_of_all_sources(pool: Path, tmp_path: Path) -> None:
    work = open_workspace(str(pool), str(tmp_path / "w"))
    work.rewrite("fused", model=MODEL, prompt="Fused {raw}")
    shown: Any = work.show(3)
    page = shown._repr_html_()
    assert "Fused picture 1" in page
    assert "picture 1" in page.replace("Fused picture 1", "")

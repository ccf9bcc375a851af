"""The Python API does the same as the command line."""

import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
from PIL import Image
from samples import image_bytes, write_pool

import capmix
from capmix.caption.settings import CaptionSettings
from capmix.cli.main import main
from capmix.errors import UserError
from capmix.settings.base import changed


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("workspace")
    write_pool(folder / "pool", 2, 4)
    ws = capmix.open(str(folder / "pool"), work=str(folder / "w"))
    ws.caption("mini", model="mini", captions_per_image=2)
    ws.score(model="mini", sources=["raw", "mini"])
    return folder


@pytest.fixture
def ws(place: Path) -> capmix.Workspace:
    return capmix.open(work=str(place / "w"))


def opened(folder: Path) -> capmix.Workspace:
    """A workspace with a pool of 2 x 4 samples and a new work directory."""
    return capmix.open(write_pool(folder / "pool", 2, 4), work=folder / "w")


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_importing_capmix_is_quick_and_imports_nothing_heavy() -> None:
    heavy = ["torch", "duckdb", "pyarrow", "numpy", "PIL", "pydantic", "matplotlib", "tqdm"]
    code = "import sys, time\nstart = time.process_time()\nimport capmix\n"
    code += f"print(time.process_time() - start, [m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, found = done.stdout.split(maxsplit=1)
    assert float(seconds) < 0.1
    assert found.strip() == "[]"


def test_everything_that_is_promised_is_there() -> None:
    assert set(capmix.__all__) <= set(dir(capmix))
    for name in capmix.__all__:
        assert getattr(capmix, name)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = capmix.nothing
    assert capmix.__version__.count(".") >= 2
    assert (Path(capmix.__file__).parent / "py.typed").exists()


def test_the_same_bytes_as_the_command_line(place: Path, tmp_path: Path) -> None:
    pool, work = str(place / "pool"), str(tmp_path / "w")
    commands = (
        f"caption {pool} --work {work} --source mini --model mini --captions-per-image 2",
        f"score --work {work} --sources raw,mini --model mini",
        f"mix --work {work} --recipe raw-top+synthetic-above --fraction 0.5 --synthetic mini",
    )
    for command in commands:
        assert main(command.split()) == 0
    ws = capmix.open(work=str(place / "w"))
    ws.mix("raw-top+synthetic-above", fraction=0.5, synthetic="mini")
    ours, theirs = files(place / "w"), files(tmp_path / "w")
    assert {k: v for k, v in ours.items() if k in theirs} == theirs


def test_a_table_of_sources(ws: capmix.Workspace) -> None:
    table = ws.table(["raw", "mini"])
    assert table.schema.names == [
        "uid", "key", "shard", "raw_text", "raw_score", "mini_text", "mini_score", "mini_flags",
    ]  # fmt: skip
    assert len(table) == 8
    first = ws.store.read_table("captions/mini/00000.parquet").to_pylist()[0]
    assert table["mini_text"][0].as_py() == first["text"]
    scores = ws.store.read_table("scores/mini/raw/00001.parquet")["score"].to_pylist()
    assert table["raw_score"].to_pylist()[4:] == scores
    assert table["shard"].to_pylist() == ["00000"] * 4 + ["00001"] * 4
    more = ws.table(["raw"], columns=["mini_k1_text", "width"])
    assert more.schema.names[-2:] == ["mini_k1_text", "width"]
    second = ws.store.read_table("captions/mini/00000.parquet").to_pylist()[1]
    assert more["mini_k1_text"][0].as_py() == second["text"]
    with pytest.raises(UserError, match=r"no column 'widht'; did you mean 'width'"):
        ws.table(["raw"], columns=["widht"])
    with pytest.raises(UserError, match="did you mean 'mini'"):
        ws.table(["mni"])


def test_tables_stream(ws: capmix.Workspace) -> None:
    batches = list(ws.batches())
    assert [len(batch) for batch in batches] == [4, 4]
    assert pa.Table.from_batches(batches).equals(ws.table())
    found = ws.relation().aggregate("count(*), count(mini_score)").fetchall()
    assert found == [(8, 8)]


def test_lists_give_a_list_of_subsets(ws: capmix.Workspace, tmp_path: Path) -> None:
    some = ws.mix("raw-top", fraction=[0.25, 0.5])
    assert [(one.name, len(one)) for one in some] == [("raw-top25", 3), ("raw-top50", 5)]
    one = ws.mix("raw-top", fraction=0.5)
    assert isinstance(one, capmix.Subset)
    assert one.table()["uid"].to_pylist() == some[1].table()["uid"].to_pylist()
    assert sum(len(batch) for batch in one.batches()) == 5
    assert one.export(str(tmp_path / "out")).ok == 5
    assert (tmp_path / "out/00000000.tar").exists()
    assert ws.subset("raw-top50").summary.kept == 5
    with pytest.raises(UserError, match="did you mean 'raw-top50'"):
        ws.subset("raw-top5")
    with pytest.raises(UserError, match="give the result a name with --out"):
        ws.mix("raw", where="width > 3")
    with pytest.raises(UserError, match="would have the name x"):
        ws.mix("raw-top", fraction=[0.1, 0.2], out="x")
    with pytest.raises(UserError, match=r"no parameter 'fractoin'"):
        ws.mix("raw-top", fractoin=0.5)


def test_status_counts_parts(tmp_path: Path) -> None:
    pool = write_pool(tmp_path / "pool", 3, 2)
    ws = capmix.open(str(pool), work=str(tmp_path / "w"))
    ws.caption("field", model="field:caption")
    captions = ws.status()["captions/field"]
    assert (captions.done, captions.missing, captions.stale, captions.ok) == (3, 0, 0, 6)
    assert captions.settings["model"] == "field:caption"
    size = sum(p.stat().st_size for p in (tmp_path / "w/captions/field").glob("*"))
    assert captions.bytes == size
    (tmp_path / "w/captions/field/00001.parquet").unlink()
    (pool / "00002.tar").write_bytes((pool / "00000.tar").read_bytes() + b"\0" * 512)
    status = capmix.open(work=str(tmp_path / "w")).status()
    captions = status["captions/field"]
    assert (captions.done, captions.missing, captions.stale) == (1, 1, 1)
    assert status["samples"].stale == 1
    assert status.to_table()["stage"].to_pylist() == ["samples", "fields", "captions/field"]
    with pytest.raises(KeyError):
        status["captions/none"]


def test_options_of_a_call_and_of_the_workspace(ws: capmix.Workspace) -> None:
    with pytest.raises(UserError, match="was created with different settings"):
        ws.caption("mini", model="mini", captions_per_image=2, seed=5)
    with pytest.raises(UserError, match=r"caption: unknown option 'sead'; did you mean 'seed'"):
        ws.caption("mini", model="mini", sead=5)
    with pytest.raises(UserError, match=r"--top-k: expected a number of at least 1, found 0"):
        ws.caption("mini", model="mini", top_k=0)
    assert ws.using(workers=3, force=True).engine.workers == 3
    assert ws.using(force=True).runs.force
    assert not ws.runs.force


def test_images_in_memory_need_no_work_directory(
    place: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    picture = Image.new("RGB", (64, 48), "red")
    (tmp_path / "a.jpg").write_bytes(image_bytes(1))
    images = [picture, image_bytes(2), tmp_path / "a.jpg", b"<html>"]
    texts = capmix.caption_images(images, model="mini", temperature=0)
    assert [isinstance(text, str) for text in texts] == [True, True, True, False]
    assert texts[3] is None
    assert "image 3: 6 bytes" in caplog.text
    several = capmix.caption_images([picture], model="mini", captions_per_image=3, seed=1)
    assert len(several[0]) == 3
    assert capmix.caption_images([picture], model="mini", captions_per_image=3, seed=1) == several
    with pytest.raises(UserError, match="reads the pool's metadata, not images"):
        capmix.caption_images([picture], model="field:x")


def test_images_are_captioned_as_those_of_a_source_were(
    ws: capmix.Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = Image.new("RGB", (64, 48), "red")
    (texts,) = ws.caption_images([picture], source="mini")
    assert len(texts) == 2  # captions_per_image of the source
    assert ws.caption_images([picture], source="mini") == [texts]
    assert ws.caption_images([picture], source="mini", captions_per_image=1) == [texts[0]]
    marker = ws.store.read_marker("captions/mini/00000")
    assert marker is not None
    marker.config["weights"] = "of another file"
    monkeypatch.setattr(type(ws.store), "read_marker", lambda store, part: marker)
    with pytest.raises(UserError, match="by another model: weights 'of another file' -> "):
        ws.caption_images([picture], source="mini")
    monkeypatch.undo()
    with pytest.raises(
        UserError, match="no captions of source 'mni'; sources: .*; did you mean 'mini'"
    ):
        ws.caption_images([picture], source="mni")


def test_a_subset_is_trained_on_and_the_run_evaluated(ws: capmix.Workspace, tmp_path: Path) -> None:
    import json

    model = {
        "embed_dim": 16,
        "vision_cfg": {
            "image_size": 16, "patch_size": 8, "width": 16, "layers": 1, "head_width": 8,
        },
        "text_cfg": {
            "context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1,
        },
    }  # fmt: skip
    (tmp_path / "vit-nano.json").write_text(json.dumps(model))
    options = {
        "model": str(tmp_path / "vit-nano.json"), "samples": 16, "batch_size": 8,
        "checkpoints": 1, "workers": 0, "device": "cpu", "log_every": 1,
    }  # fmt: skip
    subset = ws.mix("raw")
    run = capmix.train(subset, out=str(tmp_path / "run"), **options)
    assert run.checkpoint.exists()
    assert [line["samples"] for line in run.metrics()] == [8, 16]
    found = run.evaluate("embedded")
    assert [line["metric"] for line in found.lines] == ["acc1", "mean_recall@1"]
    with pytest.raises(UserError, match="contains a run with different settings"):
        capmix.train(subset, out=str(tmp_path / "run"), **(options | {"seed": 3}))
    with pytest.raises(UserError, match="unknown open_clip model"):
        capmix.train(subset, out=str(tmp_path / "r"), model="none", device="cpu")


def test_the_pool_is_remembered_and_never_another(place: Path, tmp_path: Path) -> None:
    assert capmix.open(work=str(place / "w")).pool.location == str(place / "pool")
    other = str(write_pool(tmp_path / "other", 1, 1))
    with pytest.raises(UserError, match="belongs to the pool"):
        capmix.open(other, work=str(place / "w"))
    with pytest.raises(UserError, match=r"has no pool\.json"):
        capmix.open(work=str(tmp_path / "new"))
    with pytest.raises(UserError, match="is inside the pool"):
        capmix.open(other, work=f"{other}/w")


def test_parameters_of_a_recipe_may_have_any_name(tmp_path: Path) -> None:
    work = opened(tmp_path)
    recipe = tmp_path / "wide.yaml"
    recipe.write_text(
        "{name: wide, about: x, parameters: {self: 1}, "
        "clauses: [{source: raw, where: 'width > {self}'}]}"
    )
    assert len(work.mix(str(recipe))) == 8
    with pytest.raises(UserError, match="width > 100000"):  # selects no sample
        work.mix(str(recipe), parameters={"self": 100_000.0})
    taken = tmp_path / "taken.yaml"
    taken.write_text("{name: t, about: x, parameters: {workers: 1}, clauses: [{source: raw}]}")
    with pytest.raises(UserError, match="workers is an option"):
        work.mix(str(taken))


def test_none_replaces_only_what_may_be_none() -> None:
    settings = CaptionSettings(seed=3, prompt="a photo of")
    assert changed(settings, {"seed": None}, "caption").seed == 3
    assert changed(settings, {"prompt": None}, "caption").prompt is None


def test_failed_samples_are_tried_again_in_the_same_session(tmp_path: Path) -> None:
    work = opened(tmp_path)
    assert work.index() is not None
    assert work.index() is None
    assert work.using(retry_failed=True).index() is not None


def test_paths_may_be_path_objects(tmp_path: Path) -> None:
    pool = write_pool(tmp_path / "pool", 1, 4)
    work = capmix.open(pool, work=tmp_path / "work")
    subset = work.mix("raw")
    assert work.export(subset, tmp_path / "out", format="csv").ok == 4
    (tmp_path / "c.csv").write_text(f"uid,text\n{0:032x},one\n")
    assert work.import_captions(tmp_path / "c.csv", source="given").matched == 1
    assert work.table("given").column_names == work.table(["given"]).column_names
    with pytest.raises(UserError, match="weights need directories"):
        capmix.train(subset, tmp_path / "run", weights=[1.0])
    with pytest.raises(UserError, match="2 weights for 1 directories"):
        capmix.train(tmp_path / "out", tmp_path / "run", weights=[1.0, 2.0])


def test_options_that_a_method_does_not_have_are_refused(tmp_path: Path) -> None:
    work = opened(tmp_path)
    with pytest.raises(UserError, match="unknown option 'limit_'"):
        work.annotate(method="clusters", limit_=3)
    with pytest.raises(UserError, match="expected field:NAME"):
        work.caption("x", model="field:")

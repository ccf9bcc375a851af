"""Tables of a workspace: the scorer of their scores, and columns whose type differs by shard."""

from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from null_models import null_captions, null_scores
from samples import write_pool

from capmix.errors import UserError
from capmix.workspace import Workspace, open_workspace


@pytest.fixture
def work(tmp_path: Path) -> Workspace:
    opened = open_workspace(str(write_pool(tmp_path / "pool", 2, 3)), str(tmp_path / "w"))
    opened.index()
    opened.run(partial(null_captions, opened.pool))
    return opened


def add_scorer(work: Workspace, folder: Path, name: str) -> None:
    uids = work.table(["raw"], scorer=next(iter(work.store.folders("scores")), None))["uid"]
    pq.write_table(pa.table({"uid": uids, "score": [0.5] * len(uids)}), folder / "s.parquet")
    work.import_scores([str(folder / "s.parquet")], source="raw", scorer=name, column="score")


def test_without_a_scorer_there_are_no_scores(work: Workspace) -> None:
    assert work.table().schema.names == [
        "uid", "key", "shard", "raw_text", "null_text", "null_flags",
    ]  # fmt: skip


def test_of_two_imported_scorers_one_has_to_be_chosen(work: Workspace, tmp_path: Path) -> None:
    for name in ("other", "third"):
        add_scorer(work, tmp_path, name)
    expected = r"several scorers have scores in .* \(other, third\): choose one with --scorer"
    with pytest.raises(UserError, match=expected):
        work.catalog.scorer(None)
    for call in (work.table, work.batches, work.relation):
        with pytest.raises(UserError, match=expected):
            call()
    assert work.table(scorer="other")["raw_score"].to_pylist() == [0.5] * 6
    with pytest.raises(UserError, match="did you mean 'other'"):
        work.table(scorer="othr")


def test_the_scorer_that_capmix_ran_is_taken_before_imported_ones(
    work: Workspace, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    work.run(partial(null_scores, work.pool, work.store, ["raw", "null"]))
    computed = work.table()["raw_score"]
    add_scorer(work, tmp_path, "other")
    caplog.set_level("INFO")
    assert work.table()["raw_score"].equals(computed)
    assert "using the scores of null; to use other, pass --scorer" in caplog.text
    table = work.table(scorer="other", columns=["raw_score_null"])
    assert table["raw_score"].to_pylist() == [0.5] * 6
    assert "null_score" not in table.schema.names
    assert table["raw_score_null"].equals(computed)


@pytest.mark.parametrize(
    "name", ["clip-l14", "ViT-L-14-quickgelu/openai", "vit-l-14-quickgelu-openai"]
)
def test_a_scorer_has_the_names_of_its_model_too(
    work: Workspace, tmp_path: Path, name: str
) -> None:
    for one in ("other", "vit-l-14-quickgelu-openai"):
        add_scorer(work, tmp_path, one)
    assert work.catalog.scorer(name) == "vit-l-14-quickgelu-openai"


def metadata(folder: Path, *columns: pa.Array) -> Workspace:
    """A metadata pool with one shard of two rows for each array, which is its column x."""
    (folder / "pool").mkdir()
    for number, column in enumerate(columns):
        uids = [f"{2 * number + row:032x}" for row in range(2)]
        table = pa.table({"uid": uids, "text": ["a", "b"], "x": column})
        pq.write_table(table, folder / f"pool/{number:05d}.parquet")
    return open_workspace(str(folder / "pool"), str(folder / "w"))


@pytest.mark.parametrize(
    ("columns", "kind", "values"),
    [
        ([pa.array([1, 2]), pa.array([0.5, 3.0])], pa.float64(), [1.0, 2.0, 0.5, 3.0]),
        ([pa.array([0.5, 3.0]), pa.array([1, 2])], pa.float64(), [0.5, 3.0, 1.0, 2.0]),
        (
            [pa.array([1, 2], pa.int8()), pa.array([300, None], pa.int32())],
            pa.int32(),
            [1, 2, 300, None],
        ),
        (
            [pa.array(["a", "b"]).dictionary_encode(), pa.array(["c", None], pa.large_string())],
            pa.string(),
            ["a", "b", "c", None],
        ),
    ],
)
def test_a_column_has_the_type_that_holds_all_shards(
    tmp_path: Path, columns: list[pa.Array], kind: pa.DataType, values: list[object]
) -> None:
    work = metadata(tmp_path, *columns)
    table = work.table(["raw"], columns=["x"])
    assert table["x"].type == kind
    assert table["x"].to_pylist() == values
    assert len(work.relation(["raw"], columns=["x"]).fetchall()) == 4


def test_sha256_may_be_of_several_types(tmp_path: Path) -> None:
    (tmp_path / "pool").mkdir()
    for number, kind in enumerate((pa.string(), pa.large_string())):
        table = pa.table({"uid": [f"{number:032x}"], "sha256": pa.array(["ab"], kind)})
        pq.write_table(table, tmp_path / f"pool/{number:05d}.parquet")
    work = open_workspace(str(tmp_path / "pool"), str(tmp_path / "w"))
    assert work.table(["raw"], columns=["sha256"])["sha256"].to_pylist() == ["ab", "ab"]


def test_a_shard_that_cannot_be_read_has_no_values(tmp_path: Path) -> None:
    work = metadata(tmp_path, pa.array([1, 2]), pa.array([3, 4]))
    (tmp_path / "pool/00001.parquet").write_bytes(b"PAR1 broken")
    work = open_workspace(str(tmp_path / "pool"), str(tmp_path / "w"), max_failures=1.0)
    assert work.table(["raw"], columns=["x"])["x"].to_pylist() == [1, 2]


def test_types_that_have_nothing_in_common_are_one_line(tmp_path: Path) -> None:
    work = metadata(tmp_path, pa.array([1, 2]), pa.array(["a", "b"]))
    with pytest.raises(UserError, match=r"column 'x'.*shard 00001.*string.*int64") as caught:
        work.table(["raw"], columns=["x"])
    assert "\n" not in str(caught.value)


def test_a_value_that_the_common_type_cannot_hold_is_one_line(tmp_path: Path) -> None:
    work = metadata(tmp_path, pa.array([1, 2**53 + 1]), pa.array([0.5, 3.0]))
    with pytest.raises(UserError, match=r"column 'x', shard 00000: .*9007199254740993") as caught:
        work.table(["raw"], columns=["x"])
    assert "\n" not in str(caught.value)


def mixed(work: Workspace, folder: Path, where: str) -> list[str]:
    (folder / "r.yaml").write_text(
        f"{{name: r, about: r, clauses: [{{source: raw, where: '{where}'}}]}}"
    )
    return list(work.mix(str(folder / "r.yaml")).table()["uid"].to_pylist())


@pytest.mark.parametrize("at_once", [1, 200_000])
def test_a_recipe_takes_a_column_in_one_type_of_all_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr("capmix.mix.mix.ROWS_AT_ONCE", at_once)
    work = metadata(tmp_path, pa.array([1, 2]), pa.array([0.5, 3.5]))
    assert mixed(work, tmp_path, "x / 2 > 0.9") == [f"{row:032x}" for row in (1, 3)]


@pytest.mark.parametrize("at_once", [1, 200_000])
def test_a_recipe_of_types_that_have_nothing_in_common_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr("capmix.mix.mix.ROWS_AT_ONCE", at_once)
    work = metadata(tmp_path, pa.array([1.5, 2]), pa.array(["a", "b"]))
    with pytest.raises(
        UserError, match=r"column 'x': shard 00001 has type string.*double"
    ) as caught:
        mixed(work, tmp_path, "x is not null")
    assert "\n" not in str(caught.value)


def test_half_floats_are_read_as_floats(tmp_path: Path) -> None:
    halves = pa.array([0.5, 2.0], pa.float16())
    work = metadata(tmp_path, halves, pa.array([0.25, 3.0], pa.float32()))
    assert mixed(work, tmp_path, "x > 1") == [f"{row:032x}" for row in (1, 3)]
    assert work.table(["raw"], columns=["x"])["x"].to_pylist() == [0.5, 2.0, 0.25, 3.0]

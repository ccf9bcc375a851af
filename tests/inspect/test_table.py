"""Tables of samples: columns, conditions, shards and bounds."""

from pathlib import Path

import pyarrow as pa
import pytest
from samples import write_pool

import capmix
from capmix.errors import UserError

SHARDS, SAMPLES = 6, 5


@pytest.fixture
def fresh(tmp_path: Path) -> capmix.Workspace:
    return capmix.open(write_pool(tmp_path / "pool", SHARDS, SAMPLES), work=tmp_path / "work")


@pytest.fixture(scope="module")
def ws(tmp_path_factory: pytest.TempPathFactory) -> capmix.Workspace:
    """Captions and scores of one source, and an annotation of two columns."""
    folder = tmp_path_factory.mktemp("table")
    ws = capmix.open(write_pool(folder / "pool", SHARDS, SAMPLES), work=folder / "work")
    ws.caption("uids", model="field:uid")
    ws.score(model="small_world:HashScorer", save_embeddings=True)
    ws.annotate(method="clusters", name="group", clusters=2)
    return ws


def test_a_limit_lists_no_more_shards_than_it_needs(fresh: capmix.Workspace) -> None:
    table = fresh.table(limit=7)
    assert table["raw_text"].to_pylist()[5:] == ["picture 100", "picture 101"]
    assert fresh.store.parts("samples") == ["samples/00000", "samples/00001", "samples/00002"]
    assert len(fresh.table()) == SHARDS * SAMPLES
    assert fresh.table(limit=1000).equals(fresh.table())
    with pytest.raises(UserError, match="limit: expected a number of at least 1, found 0"):
        fresh.table(limit=0)


def test_shards_are_named_or_matched_by_patterns(fresh: capmix.Workspace) -> None:
    table = fresh.table(shards=["00004", "0000[12]"])
    assert table["shard"].unique().to_pylist() == ["00001", "00002", "00004"]
    assert len(fresh.store.parts("samples")) == 3
    with pytest.raises(UserError, match="no shard '00009' in pool .*; did you mean '0000"):
        fresh.table(shards="00009")


def test_captions_of_some_shards_can_be_read_before_the_others_are_done(
    fresh: capmix.Workspace,
) -> None:
    fresh.caption("uids", model="field:uid")
    for shard in ("00004", "00005"):
        Path(fresh.store.path(f".markers/captions/uids/{shard}.json")).unlink()
    assert fresh.table(limit=20)["uids_text"].null_count == 0
    with pytest.raises(UserError, match="captions/uids"):
        fresh.table()


def test_a_condition_is_that_of_recipes(ws: capmix.Workspace) -> None:
    everything = ws.table()
    wanted = [row for row in everything.to_pylist() if row["raw_score"] > row["uids_score"]]
    assert 0 < len(wanted) < len(everything)
    assert ws.table(where="raw_score > uids_score").to_pylist() == wanted
    assert ws.table("raw", where="raw_score > uids_score").schema.names[3:] == [
        "raw_text",
        "raw_score",
    ]
    assert ws.table(where="raw_score > uids_score", limit=2).to_pylist() == wanted[:2]
    assert len(ws.table(where="raw_text like 'picture 10_'")) == SAMPLES
    assert ws.table(where="null").schema == everything.schema
    drawn = ws.table(where="draw < 0.5")["uid"].to_pylist()
    assert drawn == ws.mix("raw", where="draw < 0.5", out="half").table()["uid"].to_pylist()
    best = ws.mix("raw-top", fraction=0.2).table()["uid"].to_pylist()
    assert ws.table(where="top(raw_score, 0.2)")["uid"].to_pylist() == best
    last = ws.table(where="top(raw_score, 0.2)", shards=["00004", "00005"])
    assert [uid for uid in best if int(uid, 16) >= 400] == last["uid"].to_pylist()
    batches = ws.batches(where="raw_score > uids_score")
    assert pa.Table.from_batches(batches).num_rows == len(wanted)
    assert ws.relation(where="raw_score > uids_score").count("*").fetchall() == [(len(wanted),)]


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("widht > 3", r"^where 'widht > 3': no column 'widht'; .*did you mean 'width'\?"),
        ("uid in (select 1)", "recipes do not support sub-queries"),
        ("raw_text + 1 > 2", "where 'raw_text"),
        ("read_text('/etc/passwd') = ''", "no function 'read_text' in recipes"),
    ],
)
def test_a_condition_that_cannot_be_used_is_refused(
    ws: capmix.Workspace, where: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        ws.table(where=where)


def test_columns_are_listed_and_may_be_patterns(ws: capmix.Workspace) -> None:
    names = ws.columns()
    assert {"raw_text", "uids_text", "uids_score", "uids_best_text", "width"} <= {*names}
    assert not [name for name in names if "_k1_" in name]
    annotations = [name for name in names if name.startswith("group_")]
    assert annotations
    assert ws.table().schema.names[-len(annotations) :] == annotations
    assert ws.table("raw").schema.names == ["uid", "key", "shard", "raw_text", "raw_score"]
    assert ws.table("raw", columns="group_*").schema.names[5:] == annotations
    assert ws.table(columns=()).schema.names[-1] == "uids_flags"
    with pytest.raises(UserError, match=r"no column matches 'grup_\*'; columns: "):
        ws.table(columns="grup_*")


def test_a_subset_becomes_a_data_frame(ws: capmix.Workspace) -> None:
    subset = ws.mix("raw")
    frame = subset.to_pandas()
    assert list(frame.columns) == subset.table().schema.names
    assert list(frame["text"])[:2] == ["picture 0", "picture 1"]
    assert len(subset.to_pandas(limit=3)) == 3
    with pytest.raises(UserError, match="limit: expected a number of at least 1"):
        subset.to_pandas(limit=0)

"""Fields of the samples' JSON as columns of recipes, compared with the JSON itself."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from samples import image_bytes, tar_bytes

from capmix.errors import UserError
from capmix.mix.columns import is_text
from capmix.pool.settings import SelectSettings
from capmix.storage.store import Store
from capmix.workspace import Workspace, open_workspace

# The JSON of each sample of two shards, without the uid.
FIRST = [
    {"size": 300, "score": 0.5, "nsfw": False, "url": "http://a/1", "boxes": [[1, 2]], "mixed": 1},
    {"size": 600, "score": 1, "nsfw": True, "url": "http://b/2", "boxes": [], "mixed": True},
    {"size": None, "score": 0.125, "width": 7, "raw_text": "no", "mini_score": 0.9},
]
SECOND = [
    {"size": 512, "score": "unknown", "nsfw": False, "mixed": "x", "late": 2**53},
    {"size": 513.5, "score": 2, "url": "http://b/3", "mixed": 0.5, "late": 2**70},
]


def write_pool(folder: Path, shards: list[list[dict[str, Any]]]) -> Path:
    """Write a tar for each shard; the uid of sample n of the pool is n in 32 hex digits."""
    folder.mkdir(parents=True)
    number = 0
    for name, samples in enumerate(shards):
        members = []
        for about in samples:
            record = {"uid": f"{number:032x}", **about}
            members += [(f"{number:09d}.jpg", image_bytes(number))]
            members += [(f"{number:09d}.json", json.dumps(record).encode())]
            members += [(f"{number:09d}.txt", b"text %d" % number)]
            number += 1
        (folder / f"{name:05d}.tar").write_bytes(tar_bytes(members))
    return folder


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    folder = tmp_path_factory.mktemp("fields")
    pool = write_pool(folder / "pool", [FIRST, SECOND])
    opened = open_workspace(str(pool), str(folder / "work"))
    opened.index()
    return opened


def kept(work: Workspace, where: str) -> list[int]:
    """Return the numbers of the samples that a condition keeps."""
    rows = work.mix("raw", where=where, out="s").table()
    return [int(uid, 16) for uid in rows["uid"].to_pylist()]


@pytest.mark.parametrize(
    ("where", "samples"),
    [
        ("size >= 512", [1, 3, 4]),
        ("size >= 512 and not nsfw", [3]),
        ("url like 'http://b/%'", [1, 4]),
        ("json_array_length(boxes) = 1", [0]),
        ("try_cast(score as double) > 0.3", [0, 1, 4]),
        ("field.width = 7", [2]),
        ("field.raw_text = 'no'", [2]),
        ("width = 40 and field.size = 300", [0]),
        ("mixed = 'true'", [1]),
        ("mixed in ('1', '0.5')", [0, 4]),
        ("late > 1", [3, 4]),
        ("size is null", [2]),
        ("top(size, 0.2)", [1, 4]),
        ("mini_score > 0.5", [2]),
    ],
)
def test_a_condition_on_a_field_keeps_what_the_json_says(
    work: Workspace, where: str, samples: list[int]
) -> None:
    assert kept(work, where) == samples


def test_a_field_has_one_type_in_all_shards(work: Workspace) -> None:
    assert work.catalog.fields() == {
        "size": "DOUBLE", "score": "VARCHAR", "nsfw": "BOOLEAN", "url": "VARCHAR",
        "boxes": "VARCHAR", "mixed": "VARCHAR", "width": "BIGINT", "raw_text": "VARCHAR",
        "mini_score": "DOUBLE", "late": "DOUBLE",
    }  # fmt: skip
    table = work.table("raw", ["size", "score", "late", "boxes"])
    assert table["size"].to_pylist() == [300.0, 600.0, None, 512.0, 513.5]
    assert table["score"].to_pylist() == ["0.5", "1.0", "0.125", "unknown", "2"]
    assert table["late"].to_pylist() == [None, None, None, 2.0**53, 2.0**70]
    assert table["boxes"].to_pylist() == ["[[1,2]]", "[]", None, None, None]


def test_the_status_lists_the_fields_with_their_types(work: Workspace) -> None:
    lines = work.status().lines()
    shown = next(line for line in lines if line.startswith("fields for recipes: "))
    assert "size DOUBLE" in shown
    assert "nsfw BOOLEAN" in shown
    assert "field.width BIGINT" in shown


def test_a_comparison_of_a_mixed_field_names_the_clause(work: Workspace) -> None:
    with pytest.raises(UserError, match="clause 'raw where score > 0.3'.*an explicit cast"):
        kept(work, "score > 0.3")


def test_a_misspelt_field_is_answered_with_the_nearest(work: Workspace) -> None:
    with pytest.raises(UserError, match="no column 'szie'; .*did you mean 'size'"):
        kept(work, "szie > 5")
    with pytest.raises(UserError, match="no column 'field.urll'; .*did you mean 'field.url'"):
        kept(work, "field.urll = ''")


def test_a_name_that_a_source_has_too_means_neither(work: Workspace, tmp_path: Path) -> None:
    shutil.copytree(work.store.root, tmp_path / "work")
    here = open_workspace(work.pool.location, str(tmp_path / "work"))
    (tmp_path / "captions.csv").write_text("uid,text\n" + f"{0:032x},a caption\n")
    here.import_captions(tmp_path / "captions.csv", source="mini")
    scores = "".join(f"{uid:032x},{uid / 10}\n" for uid in range(5))
    (tmp_path / "scores.csv").write_text(f"uid,score\n{scores}")
    here.import_scores(tmp_path / "scores.csv", source="mini", scorer="clip")
    with pytest.raises(UserError, match="write field.mini_score for the field, or mini_"):
        kept(here, "mini_score > 0.5")
    assert kept(here, "field.mini_score > 0.5") == [2]
    assert kept(here, "mini_k0_score > 0.25") == [3, 4]
    assert here.mix("synthetic", synthetic="mini").summary.kept == 1


def test_an_index_without_fields_gets_them_when_a_recipe_asks(
    work: Workspace, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(work.store.root, tmp_path / "work")
    shutil.rmtree(tmp_path / "work/fields")
    shutil.rmtree(tmp_path / "work/.markers/fields")
    caplog.set_level("INFO")
    here = open_workspace(work.pool.location, str(tmp_path / "work"))
    here.mix("raw", where="width > 5", out="plain")
    with pytest.raises(UserError, match="no column 'szie'"):
        kept(here, "szie > 5")
    assert not (tmp_path / "work/fields").exists()
    assert kept(here, "size >= 512") == [1, 3, 4]
    assert "listing the fields of the samples' JSON" in caplog.text
    for shard in ("00000", "00001"):
        name = f"fields/{shard}.parquet"
        assert here.store.read_table(name).equals(work.store.read_table(name))
    assert here.status()["samples"].stale == 0


def test_a_recipe_without_fields_reads_one_of_their_markers(
    work: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    real = Store.read_marker

    def noting(store: Store, part: str) -> Any:
        read.append(part)
        return real(store, part)

    monkeypatch.setattr(Store, "read_marker", noting)
    columns = work.recipe_columns({"raw_text", "raw", "draw", "uid", "width", "list_x"})
    assert "raw_text" in columns
    assert [part for part in read if part.startswith("fields/")] == ["fields/00000"]


@pytest.mark.parametrize("column", ["url", "field.url"])
def test_one_sample_of_each_value_of_a_field_stays(work: Workspace, column: str) -> None:
    subset = work.mix("raw", where="url is not null or nsfw", distinct=column, out="s")
    assert len(subset) == 3


def test_hostile_json_is_bounded_and_counted(tmp_path: Path) -> None:
    deep: Any = []
    for _ in range(200):
        deep = [deep]
    hostile = [
        {"x.y": 1, "a b": 1, "": 1, "é": 1, "x" * 64: 1, "good": 1, "deep": deep},
        {f"f{i:03d}": i for i in range(150)},
        {"good": "x" * 40_000, "huge": 10**400, "nan": float("nan"), "lone": "\ud800"},
    ]
    pool = write_pool(tmp_path / "pool", [hostile])
    here = open_workspace(str(pool), str(tmp_path / "work"))
    here.index()
    marker = here.store.read_marker("fields/00000")
    assert marker is not None
    assert len(marker.extra["types"]) <= 100
    assert marker.extra["left_out"] == {
        "not an identifier": 5, "more than 100 fields": 55, "over 32,768 bytes": 1
    }  # fmt: skip
    assert kept(here, "good = 1") == [0]


def test_a_clause_may_name_fields_of_some_shards_alone(work: Workspace) -> None:
    assert kept(work, "late is not null or boxes is not null") == [0, 1, 3, 4]


@pytest.mark.parametrize(
    ("where", "limit", "chosen"),
    [
        ("late = 5", 1, [2]),
        ("late + 1 > 5", 9, [2, 4]),
        ("late is null", 2, [0, 1]),
        ("late is null", 9, [0, 1, 3]),
        ("late = 5 or first = 1", 9, [0, 2]),
    ],
)
def test_a_condition_may_name_a_field_that_only_later_shards_have(
    tmp_path: Path, where: str, limit: int, chosen: list[int]
) -> None:
    shards = [[{"first": 1}], [{"a": 1}], [{"late": 5}], [{"a": 2}], [{"late": 7.5}]]
    work = open_workspace(str(write_pool(tmp_path / "p", shards)), str(tmp_path / "w"))
    part, selection = work.select(SelectSettings(where=where, limit=limit))
    assert selection is not None
    names = [shard.name for shard in part.pool.shards]
    assert [int(name) for name in names if selection.rows(name, 1).any()] == chosen
    table = work.table(where=where, limit=limit, columns=["key"])
    assert [int(key) for key in table["key"].to_pylist()] == chosen
    with pytest.raises(UserError, match="--where 'lat = 5': no column 'lat'.*mean 'late'"):
        work.select(SelectSettings(where="lat = 5", limit=1))


def test_a_name_that_no_field_has_is_refused_at_the_first_shard(tmp_path: Path) -> None:
    shards = [[{"a": 1}], [{"a": 2}]]
    work = open_workspace(str(write_pool(tmp_path / "p", shards)), str(tmp_path / "w"))
    with pytest.raises(UserError, match="no column 'raw_late'"):
        work.select(SelectSettings(where="raw_late = 5", limit=1))
    assert work.store.parts("samples") == ["samples/00000"]


def test_a_field_that_is_called_text_is_no_source(tmp_path: Path) -> None:
    pool = write_pool(tmp_path / "p", [[{"text": "of the json"}]])
    work = open_workspace(str(pool), str(tmp_path / "w"))
    work.index()
    columns = work.recipe_columns({"field.text"})
    assert [name for name, one in columns.items() if is_text(one)] == ["raw_text"]
    recipe = tmp_path / "r.yaml"
    recipe.write_text("{name: r, about: r, clauses: [{source: raw, text: 'x {field.text}'}]}")
    work.mix(str(recipe), out="s")
    assert work.subset("s").table()["text"].to_pylist() == ["x of the json"]

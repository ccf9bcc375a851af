"""The workbench without its server."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from samples import BAD, sample_members, tar_bytes, write_pool

from capmix.errors import UserError
from capmix.view.journal import ConflictError
from capmix.view.server import make_workbench
from capmix.view.settings import ViewSettings
from capmix.view.workbench import BadRequestError, Query, Start, UnknownError, Workbench
from capmix.workspace import Workspace, open_workspace

FIRST = f"{0:032x}"  # uid of the first sample of shard 00000


@pytest.fixture
def work(tmp_path: Path) -> Workspace:
    """Two shards with four samples each, `picture N`, and captions `web` for all but the last."""
    made = open_workspace(str(write_pool(tmp_path / "pool")), str(tmp_path / "work"))
    numbers = [0, 1, 2, 3, 100, 101, 102]
    rows = "".join(f"{n:032x},a red thing {n} stock photo\n" for n in numbers)
    (tmp_path / "c.csv").write_text("uid,text\n" + rows)
    made.import_captions(
        [str(tmp_path / "c.csv")], source="web", uid_column="uid", text_column="text"
    )
    return made


def bench(work: Workspace, **options: Any) -> Workbench:
    return make_workbench(work.catalog, ViewSettings(author="ann", **options))


def act(one: Workbench, uid: str, shard: str = "00000", **wanted: Any) -> dict[str, Any]:
    row = one.sample(shard, uid)
    if "base" in wanted:
        wanted["digest"] = next(t["digest"] for t in row["texts"] if t["name"] == wanted["base"])
    return one.act(shard, uid, row["version"], wanted)["row"]


def keys(found: dict[str, Any]) -> list[str]:
    return [row["key"] for row in found["rows"]]


def texts(work: Workspace, shard: str, source: str = "edited") -> list[str | None]:
    return work.store.read_table(f"captions/{source}/{shard}.parquet")["text"].to_pylist()


def test_edits_are_a_source_with_a_row_for_each_sample(work: Workspace) -> None:
    one = bench(work)
    act(one, FIRST, text="  a red kite\n", base="web")
    act(one, f"{1:032x}", decision="accept", base="web")
    act(one, f"{2:032x}", decision="reject", base="web")
    act(one, f"{3:032x}", tags=["blurred", "crop"])
    one.save()
    table = work.store.read_table("captions/edited/00000.parquet")
    rows = table.to_pylist()
    assert [row["text"] for row in rows] == [
        "a red kite", "a red thing 1 stock photo", None, None
    ]  # fmt: skip
    assert [row["reason"] for row in rows] == [None, None, "rejected", "not_edited"]
    assert [row["k"] for row in rows] == [0, 0, None, None]
    assert rows[1]["flags"] == ["boilerplate"]
    assert [(row["author"], row["base_source"]) for row in rows[:2]] == [("ann", "web")] * 2
    marker = work.store.read_marker("captions/edited/00000")
    assert marker is not None
    assert (marker.rows_in, marker.counts.ok) == (4, 2)
    assert dict(marker.counts.dropped) == {"rejected": 1, "not_edited": 1}
    assert set(marker.inputs) == {"samples", "captions/web"}
    assert texts(work, "00001") == [None] * 4
    status = work.status()["captions/edited"]
    assert (status.done, status.missing, status.stale) == (2, 0, 0)


def test_recipes_use_edits_and_decisions(work: Workspace, tmp_path: Path) -> None:
    one = bench(work)
    act(one, FIRST, text="a red kite", base="web")
    act(one, f"{2:032x}", decision="reject", base="web")
    act(one, f"{3:032x}", tags=["blurred"])
    one.save()
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        "name: r\nabout: edits first\nclauses:\n- {source: edited}\n- {source: web}\n"
        "where: \"review_decision != 'reject' and not list_contains(review_tags, 'blurred')\"\n"
    )
    rows = work.mix(str(recipe)).table().to_pylist()
    assert [(row["source"], row["text"]) for row in rows if row["shard"] == "00000"] == [
        ("edited", "a red kite"), ("web", "a red thing 1 stock photo")
    ]  # fmt: skip
    assert len(rows) == 5  # of 8: one rejected, one blurred, one without a caption


def test_filters_and_search_find_what_they_say(work: Workspace) -> None:
    one = bench(work)
    act(one, FIRST, text="a blue kite", base="web")
    act(one, f"{101:032x}", "00001", decision="accept", base="web")
    act(one, f"{102:032x}", "00001", tags=["odd"], decision="reject")

    def found(**query: Any) -> list[str]:
        return keys(one.listed(Query(**query), Start()))

    assert len(found()) == 8
    assert found(keep="edited") == ["000000000"]
    assert found(keep="accepted") == ["000010001"]
    assert found(keep="rejected") == found(keep="tag:odd") == found(keep="tagged") == ["000010002"]
    assert len(found(keep="untouched")) == 5
    assert len(found(keep="flagged")) == 7
    assert found(keep="no-text", within="web") == ["000010003"]
    assert found(find="BLUE") == ["000000000"]
    assert found(find="BLUE", case=True) == []
    assert found(find="picture 10[01]", regex=True) == ["000010000", "000010001"]
    assert found(find="picture", shard="00001", within="web") == []
    assert one.listed(Query(shard="00001", find="red"), Start())["matches"] == 3
    with pytest.raises(BadRequestError, match="regular expression"):
        found(find="(", regex=True)
    with pytest.raises(UnknownError, match="no shard 'x'"):
        found(shard="x")


def test_lists_go_on_in_both_directions(work: Workspace) -> None:
    one = bench(work)
    first = one.listed(Query(), Start(limit=3))
    assert (keys(first)[-1], first["rest"], first["matches"], first["before"]) == (
        "000000002", (0, 3), 8, 0
    )  # fmt: skip
    second = one.listed(Query(), Start(0, 3, limit=3))
    assert (keys(second), second["rest"], second["before"]) == (
        ["000000003", "000010000", "000010001"], (1, 2), 3
    )  # fmt: skip
    back = one.listed(Query(), Start(1, 0, backwards=True, limit=3))
    assert (keys(back), back["rest"]) == (["000000002", "000000003", "000010000"], (0, 1))


def test_a_sample_is_found_by_number_key_and_uid(work: Workspace) -> None:
    one = bench(work)
    assert one.find("00000", "2") == (0, 1)
    assert one.find("00000", "6", everywhere=True) == (1, 1)
    assert one.find("2", "000010003") == (1, 3)
    assert one.find("1", f"{103:032x}", everywhere=True) == (1, 3)
    for wanted in ("0000000000019", "1" * 13):
        with pytest.raises(UnknownError, match="no shard"):
            one.shard(wanted)
        with pytest.raises(UnknownError, match="expected a number up to 4"):
            one.sample("00000", wanted)
    for wanted in ("9", "0", "-1", "x", "9" * 400):
        with pytest.raises(UnknownError, match="expected a number up to 8"):
            one.find("1", wanted, everywhere=True)


def test_shards_named_by_numbers_are_found_by_their_place(tmp_path: Path) -> None:
    (tmp_path / "pool").mkdir()
    for shard in range(3):
        members = sample_members(f"k{shard}", shard)
        (tmp_path / f"pool/{shard}.tar").write_bytes(tar_bytes(members))
    one = bench(open_workspace(str(tmp_path / "pool"), str(tmp_path / "work")))
    assert one.place(number="1") == {"number": 1, "name": "1"}
    assert one.place(name="1") == {"number": 1, "name": "1"}
    with pytest.raises(UnknownError, match="the pool has 3"):
        one.place(number="3")


def test_a_large_pool_is_searched_shard_by_shard(
    work: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("capmix.view.workbench.MOST_SHARDS", 1)
    monkeypatch.setattr("capmix.view.workbench.SECONDS", 0.0)
    one = bench(work)
    assert not one.is_small
    act(one, f"{101:032x}", "00001", decision="accept", base="web")
    found = one.listed(Query(find="picture 102"), Start())
    assert (keys(found), found["rest"], found["matches"]) == ([], (0, 0), None)
    monkeypatch.setattr("capmix.view.workbench.SECONDS", 60.0)
    assert keys(one.listed(Query(find="picture 102"), Start())) == ["000010002"]
    assert keys(one.listed(Query(keep="accepted"), Start())) == ["000010001"]
    with pytest.raises(BadRequestError, match="choose a shard"):
        one.replacements(Query(find="red", base="web"), "blue")


def test_an_undo_before_a_kill_is_folded_in_a_large_pool_too(
    work: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("capmix.view.workbench.MOST_SHARDS", 1)
    one = bench(work)
    act(one, FIRST, text="a mistake", base="web")
    assert one.save()["saved"] == (
        "1 shard written, 0 up to date, 1 without parts; run `capmix view --fold` before other "
        "commands read the source"
    )
    one.undo()
    assert bench(work).fold().written == 1  # another process
    assert texts(work, "00000") == [None] * 4
    assert bench(work).fold(everything=True).written == 1
    assert texts(work, "00001") == [None] * 4


def test_undo_and_redo_survive_a_restart(work: Workspace) -> None:
    act(bench(work), FIRST, text="first", base="web")
    act(bench(work), FIRST, text="second", base="web")
    one = bench(work)
    assert one.undo()["rows"][0]["review"]["text"] == "first"
    again = bench(work)
    assert again.undo()["rows"][0]["review"] is None
    with pytest.raises(BadRequestError, match="nothing to undo"):
        again.undo()
    assert again.undo(is_redo=True)["rows"][0]["review"]["text"] == "first"
    assert bench(work).undo(is_redo=True)["rows"][0]["review"]["text"] == "second"
    with pytest.raises(BadRequestError, match="nothing to redo"):
        one.undo(is_redo=True)


def test_find_and_replace_does_what_the_preview_shows(work: Workspace) -> None:
    one = bench(work)
    act(one, FIRST, text="the RED kite", base="web")
    query = Query(find="red", base="web")
    seen = one.replacements(query, "blue")
    assert seen["count"] == 7
    assert (seen["shown"][0]["before"], seen["shown"][0]["after"]) == (
        "the RED kite", "the blue kite"
    )  # fmt: skip
    act(one, f"{1:032x}", tags=["x"])
    with pytest.raises(ConflictError, match="preview"):
        one.replace(query, "blue", seen["digest"])
    assert one.replace(query, "blue", one.replacements(query, "blue")["digest"])["changed"] == 7
    one.save()
    assert texts(work, "00000")[:2] == ["the blue kite", "a blue thing 1 stock photo"]
    assert one.undo()["changed"] == 7
    one.save()
    assert texts(work, "00000") == ["the RED kite", None, None, None]
    groups = one.replacements(
        Query(shard="00001", find=r"(red) (thing)", regex=True, base="web"), r"\2 \1"
    )
    assert groups["shown"][0]["after"] == "a thing red 100 stock photo"
    assert one.replacements(Query(find="a.red", base="web"), "x")["count"] == 0


def test_find_and_replace_leaves_stale_edits_out(work: Workspace, tmp_path: Path) -> None:
    one = bench(work)
    act(one, FIRST, text="a colour thing", base="web")
    act(one, f"{1:032x}", text="another colour thing", base="raw")
    rewrite(work, tmp_path)
    again = bench(work)
    query = Query(find="colour", base="web", word=True)
    found = again.replacements(query, "color")
    assert (found["count"], found["leftOut"]) == (1, {"stale": 1, "long": 0})
    again.replace(query, "color", found["digest"])
    assert again.sample("00000", FIRST)["review"]["stale"] == ["web"]
    assert again.sample("00000", FIRST)["review"]["text"] == "a colour thing"


@pytest.mark.parametrize(
    ("text", "find", "after"),
    [
        ("el señor se fue", "se", "el señor X fue"),
        ("un café noir", "café", "un X noir"),
        ("cafe\u0301 cafe", "cafe", "cafe\u0301 X"),
        ("na na na naïve", "na", "X X X naïve"),
        ("一只 猫 在 猫猫", "猫", "一只 X 在 猫猫"),
        ("a RED_hat, red-ish", "red", "a RED_hat, X-ish"),
        ("50% of 150%", "50%", "X of 150%"),
    ],
)
def test_whole_words_are_those_of_any_script(
    tmp_path: Path, text: str, find: str, after: str
) -> None:
    (tmp_path / "pool").mkdir()
    (tmp_path / "pool/0.tar").write_bytes(tar_bytes(sample_members("a", 1, text)))
    one = bench(open_workspace(str(tmp_path / "pool"), str(tmp_path / "work")))
    found = one.replacements(Query(find=find, base="raw", word=True), "X")
    assert [change["after"] for change in found["shown"]] == [after]


def test_whole_words_of_a_regular_expression_are_refused(work: Workspace) -> None:
    with pytest.raises(BadRequestError, match="whole words"):
        bench(work).replacements(Query(find="r.d", base="web", word=True, regex=True), "x")


def test_a_text_that_is_too_long_is_left_out_of_a_replacement_and_counted(tmp_path: Path) -> None:
    (tmp_path / "pool").mkdir()
    members = [*sample_members("a", 1, "red " * 3000), *sample_members("b", 2, "red hat")]
    members += sample_members("c", 3, "red " * 2000)
    (tmp_path / "pool/0.tar").write_bytes(tar_bytes(members))
    one = bench(open_workspace(str(tmp_path / "pool"), str(tmp_path / "work")))
    found = one.replacements(Query(find="red", base="raw", word=True), "scarlet")
    assert (found["count"], found["leftOut"]) == (1, {"stale": 0, "long": 2})
    assert found["shown"][0]["key"] == "b"


def test_two_tabs_and_two_servers_do_not_lose_edits(work: Workspace) -> None:
    one, other = bench(work), bench(work)
    row = other.sample("00000", FIRST)
    act(one, FIRST, text="of one", base="web")
    base = next(text for text in row["texts"] if text["name"] == "web")
    wanted = {"text": "of the other", "base": "web", "digest": base["digest"]}
    with pytest.raises(ConflictError, match="another tab or server"):
        other.act("00000", FIRST, row["version"], wanted)
    act(other, f"{1:032x}", text="another sample", base="web")
    assert one.sample("00000", f"{1:032x}")["review"]["text"] == "another sample"
    one.save()
    assert texts(work, "00000")[:2] == ["of one", "another sample"]


def rewrite(work: Workspace, tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text(f"uid,text\n{FIRST},a new caption\n")
    work.import_captions(
        [str(tmp_path / "d.csv")], source="web", uid_column="uid", text_column="text"
    )


def test_an_edit_of_a_caption_that_changed_is_shown_and_not_applied(
    work: Workspace, tmp_path: Path
) -> None:
    one = bench(work)
    act(one, FIRST, decision="accept", base="web")
    one.save()
    shown = one.sample("00000", FIRST)
    rewrite(work, tmp_path)
    assert work.status()["captions/edited"].stale == 1
    again = bench(work)
    assert again.sample("00000", FIRST)["review"]["stale"] == ["web"]
    assert keys(again.listed(Query(keep="stale"), Start())) == ["000000000"]
    again.save()
    table = work.store.read_table("captions/edited/00000.parquet")
    assert (table["text"][0].as_py(), table["reason"][0].as_py()) == (None, "stale")
    review = work.store.read_table("columns/review/00000.parquet")
    assert review["decision"].to_pylist() == ["stale", *["undecided"] * 3]
    assert review["tags"].to_pylist() == [[]] * 4
    with pytest.raises(BadRequestError, match="confirm"):
        act(again, FIRST, decision="accept")
    web = next(text for text in shown["texts"] if text["name"] == "web")
    with pytest.raises(ConflictError, match="has changed since it was displayed"):
        again.act(
            "00000", FIRST, shown["version"],
            {"text": "x", "base": "web", "digest": web["digest"]},
        )  # fmt: skip
    act(again, FIRST, confirm=True)
    again.save()
    assert texts(work, "00000")[0] == "a red thing 0 stock photo"


def test_a_rejection_does_not_become_stale_with_the_text(work: Workspace, tmp_path: Path) -> None:
    one = bench(work)
    act(one, FIRST, text="mine", base="web")
    act(one, FIRST, decision="reject")
    rewrite(work, tmp_path)
    again = bench(work)
    assert again.sample("00000", FIRST)["review"]["stale"] == []
    again.save()
    assert work.store.read_table("captions/edited/00000.parquet")["reason"][0].as_py() == "rejected"
    review = work.store.read_table("columns/review/00000.parquet")
    assert review["decision"][0].as_py() == "reject"
    assert act(again, FIRST, decision="")["review"]["stale"] == ["web"]


def test_an_edit_stays_where_the_text_it_was_made_from_cannot_be_read(
    work: Workspace, caplog: pytest.LogCaptureFixture
) -> None:
    one = bench(work)
    act(one, FIRST, text="mine", base="web")
    one.save()
    path = Path(work.store.path("captions/web/00000.parquet"))
    whole = path.read_bytes()
    path.write_bytes(whole[:400] + bytes([whole[400] ^ 255]) + whole[401:])
    act(bench(work), f"{1:032x}", tags=["x"])
    again = bench(work)
    assert again.fold(everything=True).unreadable == ["00000"]
    assert "shard 00000" in caplog.text
    assert "captions of web" in caplog.text
    assert again.sample("00000", FIRST)["review"]["stale"] == []
    assert texts(work, "00000")[0] == "mine"
    path.write_bytes(whole)
    assert bench(work).fold(everything=True).written == 1
    assert texts(work, "00000")[0] == "mine"
    review = work.store.read_table("columns/review/00000.parquet")
    assert review["tags"].to_pylist()[1] == ["x"]


def test_an_edit_stays_when_the_source_it_was_made_from_is_removed(
    work: Workspace, tmp_path: Path
) -> None:
    one = bench(work)
    act(one, FIRST, text="mine", base="web")
    act(one, f"{1:032x}", decision="accept", base="web")
    one.save()
    before = texts(work, "00000")
    cleaned = work.clean(sources=["web"], yes=True)
    assert "2 edits in edits/edited based on web kept" in "\n".join(cleaned.lines())
    again = bench(work)
    again.fold(everything=True)
    assert texts(work, "00000") == before
    assert again.sample("00000", FIRST)["review"]["stale"] == []
    assert act(again, FIRST, decision="accept")["review"]["decision"] == "accept"
    work.import_captions(
        [str(tmp_path / "c.csv")], source="web", uid_column="uid", text_column="text"
    )
    assert bench(work).sample("00000", FIRST)["review"]["stale"] == []


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ({"text": None, "decision": "accept", "base": "web"}, "empty caption cannot be accepted"),
        ({"text": "x" * 8193, "base": "web"}, "at most 8,192"),
        ({"text": 7, "base": "web"}, "expected a string"),
        ({"text": "x"}, "base: expected"),
        ({"decision": "maybe"}, "decision"),
        ({"tags": ["x" * 65]}, "tags"),
        ({"tags": ["a\nb"]}, "tags"),
        ({"tags": "a"}, "tags"),
        ({"tags": [str(n) for n in range(33)]}, "tags"),
    ],
)
def test_what_is_out_of_bounds_is_refused(
    work: Workspace, wanted: dict[str, Any], words: str
) -> None:
    with pytest.raises(BadRequestError, match=words):
        act(bench(work), FIRST, **wanted)


def test_surrogates_and_zero_bytes_do_not_get_into_parts(work: Workspace) -> None:
    one = bench(work)
    act(one, FIRST, text="a \ud800 \0kite", base="web")
    one.save()
    assert texts(work, "00000")[0] == "a ? kite"


def test_who_only_looks_changes_nothing(work: Workspace) -> None:
    one = bench(work, read_only=True)
    with pytest.raises(Exception, match="--read-only"):
        act(one, FIRST, tags=["x"])
    assert not work.store.exists("edits")
    assert one.save()["saved"].startswith("0 shards")
    assert work.sources() == ["raw", "web"]


def test_other_stages_take_edits_as_any_source(work: Workspace, tmp_path: Path) -> None:
    one = bench(work)
    act(one, FIRST, text="a red kite", base="web")
    act(one, f"{1:032x}", decision="accept", base="web")
    one.save()
    counts = work.score(model="small_world:HashScorer", sources=["edited", "web"])
    assert (counts["edited"].ok, counts["edited"].dropped["not_edited"]) == (2, 6)
    assert one.sample("00000", FIRST)["review"]["score"] is not None
    assert work.measure(topics=0)["population"]["sources"]["edited"]["texts"] == 2
    subset = work.mix("synthetic", synthetic="edited")
    assert subset.table()["text"].to_pylist() == ["a red kite", "a red thing 1 stock photo"]
    subset.export(str(tmp_path / "out"))
    assert work.verify(discard=False).damaged == []
    act(one, FIRST, text="a blue kite", base="web")
    one.save()
    assert one.sample("00000", FIRST)["review"]["score"] is None
    with pytest.raises(UserError, match="were rewritten after it was scored"):
        work.mix("synthetic-top", fraction=0.5, synthetic="edited")
    with pytest.raises(UserError, match="holds captions that a model wrote"):
        work.import_captions(
            [str(tmp_path / "c.csv")], source="edited", uid_column="uid", text_column="text"
        )


def test_samples_that_failed_stay_failed_in_the_parts_of_edits(tmp_path: Path) -> None:
    (tmp_path / "pool").mkdir()
    members = [*sample_members("a", 1), *BAD["no_image"], *sample_members("c", 3)]
    (tmp_path / "pool/0.tar").write_bytes(tar_bytes(members))
    work = open_workspace(str(tmp_path / "pool"), str(tmp_path / "work"))
    one = bench(work)
    act(one, f"{3:032x}", "0", text="the third", base="raw")
    one.save()
    for folder, counted in (("captions/edited", 1), ("columns/review", 2)):
        marker = work.store.read_marker(f"{folder}/0")
        assert marker is not None
        assert (marker.rows_in, marker.counts.ok, dict(marker.counts.failed)) == (
            3, counted, {"no_image": 1}
        )  # fmt: skip
        rows = work.store.read_table(f"{folder}/0.parquet").to_pylist()
        assert [row["key"] for row in rows] == ["a", "bad", "c"]
        assert rows[1]["status"] == "failed"
    assert rows[1]["tags"] is None


def test_names_that_are_taken_are_refused(work: Workspace) -> None:
    with pytest.raises(UserError, match="was not written by capmix view"):
        bench(work, source="web")
    other: Callable[[], Any] = lambda: bench(work, source="fixes")  # noqa: E731
    act(other(), FIRST, tags=["x"])
    other().save()
    assert work.store.folders("columns") == ["fixes_review"]

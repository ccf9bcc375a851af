"""Displayed samples: escaped and bounded HTML, and plain text."""

import io
import json
import re
from collections import Counter
from pathlib import Path

import pytest
from browser import CHROMIUM, QUIET, needs_chromium
from PIL import Image
from playwright.sync_api import sync_playwright
from samples import image_bytes, sample_members, tar_bytes, write_pool

import capmix
from capmix.errors import UserError
from capmix.inspect.show import MOST
from capmix.storage.marker import Counts

EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>\x1b[2J\u202e\n" + "long " * 400


@pytest.fixture(scope="module")
def ws(tmp_path_factory: pytest.TempPathFactory) -> capmix.Workspace:
    folder = tmp_path_factory.mktemp("show")
    ws = capmix.open(write_pool(folder / "pool", 6, 5), work=folder / "work")
    ws.caption("uids", model="field:uid")
    ws.score(model="small_world:HashScorer")
    ws.mix("raw", where="draw < 0.5", out="half")
    return ws


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> capmix.Workspace:
    """Texts and keys with markup, an image that does not decode, a sample without an image."""
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "pool").mkdir()
    members = sample_members("<b>&amp;", 1, EVIL)
    uids = [json.dumps({"uid": f"{n:032x}"}).encode() for n in (8, 9)]
    members += [("broken.jpg", image_bytes(2, (400, 300))[:-900]), ("broken.json", uids[0])]
    members += [("large.png", image_bytes(3, (1500, 900), "PNG")), ("large.json", uids[1])]
    members += [("lost.txt", b"no image"), ("lost.json", b"{}")]
    (folder / "pool/0.tar").write_bytes(tar_bytes(members))
    return capmix.open(folder / "pool", work=folder / "work")


def test_a_terminal_shows_texts_and_scores(ws: capmix.Workspace) -> None:
    shown = ws.show(2)
    assert re.fullmatch(
        r"2 samples of pool \S+/pool\n"
        r"(\d{5}: \d{9}\n"
        r"  raw +-?0\.\d{3} +picture \d+\n"
        r"  uids +-?0\.\d{3} +\w{32}\n?){2}",
        repr(shown),
    )
    assert [one.source for one in next(iter(shown)).texts] == ["raw", "uids"]
    assert repr(ws.show(2)) == repr(shown)
    assert repr(ws.show(2, seed=1)) != repr(shown)
    assert "uids" not in repr(ws.show(2, sources="raw"))
    assert len(ws.show(30)) == len(ws.show(MOST)) == 30


def test_what_is_drawn_can_be_narrowed(ws: capmix.Workspace) -> None:
    assert {one.shard for one in ws.show(9, shards="0000[12]")} == {"00001", "00002"}
    found = ws.show(9, where="raw_text like 'picture 30_'")
    assert sorted(one.texts[0].text or "" for one in found) == [
        f"picture {n}" for n in range(300, 305)
    ]
    for n in (0, MOST + 1):
        with pytest.raises(UserError, match=f"show: n: expected a number from 1 to {MOST}"):
            ws.show(n)
    with pytest.raises(UserError, match="did you mean 'uids'"):
        ws.show(sources="uid")
    with pytest.raises(UserError, match="did you mean 'half'"):
        ws.show(subset="haf")


def test_of_a_subset_its_own_texts_are_marked(ws: capmix.Workspace) -> None:
    half = ws.subset("half")
    shown = half.show(30)
    assert len(shown) == len(half)
    assert {one.uid for one in shown} == set(half.table()["uid"].to_pylist())
    assert {text.name for one in shown for text in one.texts} == {"raw ✓"}
    beside = half.show(3, sources=["raw", "uids"])
    assert [text.name for text in next(iter(beside)).texts] == ["raw ✓", "uids"]
    assert {one.uid for one in half.show(30, where="draw < 0.2")} == set(
        ws.table(where="draw < 0.2")["uid"].to_pylist()
    )


def test_several_texts_of_a_sample_are_one_sample(ws: capmix.Workspace, tmp_path: Path) -> None:
    recipe = tmp_path / "both.yaml"
    recipe.write_text(
        "name: both\nabout: both texts\nkeep: all\nclauses:\n"
        "  - {source: raw, where: 'true', weight: 3}\n  - {source: uids, where: 'true'}\n"
    )
    shown = ws.mix(str(recipe)).show(2)
    assert [(text.name, text.notes) for text in next(iter(shown)).texts] == [
        ("raw ✓", ["weight 3"]),
        ("uids ✓", []),
    ]


def test_a_large_pool_is_not_listed_to_look_at_some_of_it(tmp_path: Path) -> None:
    ws = capmix.open(write_pool(tmp_path / "pool", 12, 3), work=tmp_path / "work")
    assert len(ws.show(5)) == 5
    assert len(ws.store.parts("samples")) == 4
    assert len(ws.show(5, where="raw_text = 'picture 0'")) == 1
    assert len(ws.store.parts("samples")) == 12


def test_shards_without_captions_are_passed_over(tmp_path: Path) -> None:
    ws = capmix.open(write_pool(tmp_path / "pool", 6, 2), work=tmp_path / "work")
    ws.caption("uids", model="field:uid")
    for shard in ("00000", "00002", "00003", "00004", "00005"):
        Path(ws.store.path(f".markers/captions/uids/{shard}.json")).unlink()
    assert {one.shard for one in ws.show(9)} == {"00001"}
    assert len(ws.show(9, sources="raw")) == 9


def test_html_is_escaped_and_bounded(hostile: capmix.Workspace) -> None:
    shown = hostile.show(3)
    html = shown._repr_html_()
    assert html.startswith('<div class="mathjax_ignore tex2jax_ignore">')
    assert "<script" not in html
    assert "<b>&amp;" not in html
    assert "&lt;script&gt;" in html
    assert html.count("long") < 150
    assert html.count("data:image/webp;base64,") == 2
    assert "no image" in html
    large = max((one.image or b"" for one in shown), key=len)
    assert max(Image.open(io.BytesIO(large)).size) == 192
    assert len(html) < 60_000
    text = repr(shown)
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert max(map(len, text.splitlines())) < 200


@needs_chromium
def test_a_browser_runs_and_fetches_nothing(hostile: capmix.Workspace, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text(f"<!doctype html><html data-ready=yes>{hostile.show(3)._repr_html_()}", "utf-8")
    requests: list[str] = []
    dialogs: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        tab = browser.new_page()
        tab.on("request", lambda request: requests.append(request.url.partition(":")[0]))
        tab.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
        tab.goto(page.as_uri())
        assert tab.locator("figure").count() == 3
        widths = tab.evaluate("[...document.images].map(image => image.naturalWidth)")
        browser.close()
    assert sorted(widths) == [40, 192]
    assert dialogs == []
    assert set(requests) <= {"file", "data"}


def test_what_is_worked_with_shows_itself(ws: capmix.Workspace) -> None:
    assert re.fullmatch(r"Workspace\('\S+/pool', 6 shards, work='\S+/work'\)", repr(ws))
    assert repr(ws.subset("half")) == f"Subset('half', {len(ws.subset('half'))} rows)"
    assert repr(ws.index()) in ("None", "Counts(30 ok)")
    assert repr(ws.caption("uids", model="field:uid")) == "Counts(30 ok)"
    assert repr(ws.status()).splitlines() == ws.status().lines()
    for one in (ws, ws.subset("half"), ws.status(), ws.caption("uids", model="field:uid")):
        assert one._repr_html_().startswith('<div class="mathjax_ignore tex2jax_ignore">')
    assert "raw, uids" in ws._repr_html_()
    assert "left out: no clause holds" in ws.subset("half")._repr_html_()
    gone = capmix.Subset(ws, "gone")
    assert repr(gone) == "Subset('gone')"


def test_counts_show_reasons() -> None:
    some = Counts(1200, Counter(too_small=2), Counter({"b": 1, "<a>": 3}))
    assert repr(some) == "Counts(1,200 ok, 2 dropped (too_small 2), 4 failed (<a> 3, b 1))"
    assert "&lt;a&gt;" in some._repr_html_()

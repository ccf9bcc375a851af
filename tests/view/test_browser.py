"""The workbench in a real browser, operated only by keyboard where possible."""

import csv
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import Opened, Seen, needs_chromium
from samples import sample_members, tar_bytes
from view_server import serving

from capmix.view.server import make_workbench
from capmix.view.settings import ViewSettings
from capmix.workspace import Workspace, open_workspace

pytestmark = needs_chromium

HOSTILE = "</script><img src=x onerror='window.hacked=1'>"
TEXTS = ["a red kite", HOSTILE, "two red boats", "\u202egpj.exe", "a blue hat", "redder than red"]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Two shards with three samples each, and captions `web` (TEXTS, some of them hostile)."""
    folder = tmp_path_factory.mktemp("browser")
    (folder / "pool").mkdir()
    for shard in range(2):
        members = []
        for row in range(3):
            members += sample_members(f"k{shard}{row}", 3 * shard + row, HOSTILE, title=HOSTILE)
        (folder / f"pool/{shard:05d}.tar").write_bytes(tar_bytes(members))
    with open(folder / "c.csv", "w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["uid", "text"])
        writer.writerows([f"{i:032x}", text] for i, text in enumerate(TEXTS))
    made = open_workspace(str(folder / "pool"), str(folder / "work"))
    made.import_captions(
        [str(folder / "c.csv")], source="web", uid_column="uid", text_column="text"
    )
    return made


@pytest.fixture(scope="module")
def served(work: Workspace) -> Iterator[str]:
    with serving(work.store.root) as (address, _):
        yield address


def key(seen: Seen) -> str:
    return seen.page.locator("#key").inner_text()


def press(seen: Seen, *keys: str) -> None:
    for one in keys:
        seen.page.keyboard.press(one)


def review(seen: Seen, name: str) -> Any:
    """Return a JavaScript expression for a field of the displayed sample's review."""
    return seen.page.evaluate(f"rows[at].review && rows[at].review.{name}")


def test_the_keyboard_reviews_edits_and_takes_back(
    opened: Opened, work: Workspace, served: str
) -> None:
    with opened(served) as seen:
        page = seen.page
        assert key(seen) == "k00"
        press(seen, "a")
        seen.until("rows[0].review && rows[0].review.decision === 'accept' && at === 1")
        press(seen, "r")
        seen.until("rows[1].review && rows[1].review.decision === 'reject' && at === 2")
        press(seen, "e", "End")
        page.keyboard.type(" & <b>sails</b>")
        press(seen, "Control+Enter")
        seen.until("at === 3")
        press(seen, "Escape", "k")
        seen.until("at === 2")
        assert page.locator("#caption").input_value() == "two red boats & <b>sails</b>"
        press(seen, "t")
        page.keyboard.type("sea, <i>x</i>")
        press(seen, "Enter")
        seen.until("rows[2].review.tags.length === 2")
        press(seen, "Control+s")
        seen.until("document.getElementById('save').textContent === 'Parts written'")
        assert work.store.read_table("captions/edited/00000.parquet")["text"].to_pylist() == [
            "a red kite", None, "two red boats & <b>sails</b>"
        ]  # fmt: skip
        press(seen, "u")
        seen.until("rows[2].review.tags.length === 0")
        page.reload()
        page.wait_for_selector("html[data-ready=yes]")
        seen.until("rows[at].key === 'k02'")  # the place is restored
        press(seen, "u")
        seen.until("!rows[at].review")
        assert page.locator("#caption").input_value() == "two red boats"
        press(seen, "Shift+U")
        seen.until("rows[at].review && rows[at].review.edited")
        press(seen, "?")
        assert page.locator("#help").is_visible()
        assert "accept" in page.locator("#keys").inner_text()
        press(seen, "Escape")
        press(seen, "g")
        page.keyboard.type("k01")
        press(seen, "Enter")
        seen.until("rows[at].key === 'k01'")
        press(seen, "/")
        page.keyboard.type("BLUE")
        press(seen, "Enter")
        seen.until("rows.length === 1 && rows[at].key === 'k11'")
        assert page.locator("#texts mark").inner_text() == "blue"
        page.click("[data-filter=rejected]")
        seen.until("rows.length === 0")
        page.click("#show-all")
        seen.until("rows.length === 6")
        assert page.evaluate("window.hacked") is None
        assert seen.dialogs == []
        assert seen.errors == []
        root = served.partition("?")[0]
        assert all(one.startswith((root, "data:")) for one in seen.requests)


def test_find_and_replace_shows_what_it_will_do(opened: Opened, served: str) -> None:
    with opened(served) as seen:
        page = seen.page
        press(seen, "h")
        page.keyboard.type("red")
        press(seen, "Tab")
        page.keyboard.type("green")
        press(seen, "Enter")
        seen.until("!document.getElementById('replace-do').disabled")
        changes = page.locator("#replace-shown li").all_inner_texts()
        assert page.locator("#replace-do").inner_text() == "Replace in 3 captions"
        assert len(changes) == 3
        assert page.locator("#replace-shown del").last.inner_text() == "red"
        assert seen.axe() == []
        page.click("#replace-do")
        seen.until("!document.getElementById('replacing').open")
        seen.until("rows.filter((row) => row.review && /green/.test(row.review.text)).length === 3")
        assert "redder than green" in page.evaluate("rows.map((row) => row.review?.text ?? '')")
        press(seen, "u")
        seen.until("rows.every((row) => !row.review || !/green/.test(row.review.text))")


def test_what_is_typed_survives_a_killed_server_and_a_reload(
    opened: Opened, work: Workspace
) -> None:
    with serving(work.store.root) as (address, server):
        port = address.split(":")[2].partition("/")[0]
        with opened(address) as seen:
            page = seen.page
            press(seen, "]", "e")
            seen.until("rows[at].shard === '00001'")
            page.fill("#caption", "typed while it died")
            os.kill(server.pid, signal.SIGKILL)
            server.wait(10)
            press(seen, "Control+Enter")
            seen.until(
                "/is capmix view still running/.test(document.getElementById('said').innerText)"
            )
            shown = page.evaluate("rows[at].key")
            with serving(work.store.root, "--port", port) as (again, _):
                page.goto(again)
                page.wait_for_selector("html[data-ready=yes]")
                seen.until(f"rows[at].key === '{shown}'")
                assert page.locator("#caption").input_value() == "typed while it died"
                press(seen, "e", "Control+Enter")
                seen.until("rows.some((row) => row.review?.text === 'typed while it died')")


@pytest.mark.parametrize(
    ("width", "scheme"),
    [(1400, "light"), (390, "dark"), pytest.param(1400, "dark", marks=pytest.mark.slow)],
)
def test_axe_finds_nothing_and_a_phone_shows_all(
    opened: Opened, served: str, width: int, scheme: str
) -> None:
    with opened(served, width, scheme) as seen:
        seen.page.wait_for_timeout(300)
        assert seen.axe() == []
        assert seen.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        seen.page.click("#help-open")
        assert seen.axe() == []


def test_a_stale_edit_is_shown_and_confirmed(
    opened: Opened, work: Workspace, served: str, tmp_path: Path
) -> None:
    with opened(served) as seen:
        press(seen, "g")
        seen.page.keyboard.type("k10")
        press(seen, "Enter")
        seen.until("rows[at].key === 'k10'")
        press(seen, "e", "End")
        seen.page.keyboard.type(" of mine")
        press(seen, "Control+Enter")
        seen.until("rows.some((row) => row.key === 'k10' && row.review?.edited)")
        rows = [f"{i:032x},{text.replace(chr(34), '')}" for i, text in enumerate(TEXTS)]
        rows[3] = f"{3:032x},another text"
        (tmp_path / "c.csv").write_text("\n".join(["uid,text", *rows]), "utf-8")
        work.import_captions(
            [str(tmp_path / "c.csv")], source="web", uid_column="uid", text_column="text"
        )
        press(seen, "Escape")
        seen.page.click("[data-filter=stale]")
        seen.until("rows.length === 1 && !document.getElementById('stale').hidden")
        assert (
            "the text of web has changed" in seen.page.locator("#stale-text").inner_text().lower()
        )
        assert seen.axe() == []
        press(seen, "c")
        seen.until("document.getElementById('stale').hidden && rows[at].review.stale.length === 0")
        assert review(seen, "text").endswith("of mine")


def test_a_read_only_page_has_no_way_to_edit(opened: Opened, work: Workspace) -> None:
    with (
        serving(work.store.root, "--read-only") as (address, _),
        opened(address) as seen,
    ):
        journal = Path(work.store.path("edits/edited/journal.jsonl"))
        before = journal.read_bytes()
        press(seen, "a", "r", "u", "h", "1", "j")
        seen.until("at === 1")
        assert seen.page.locator("#caption").get_attribute("readonly") is not None
        assert seen.page.locator("#accept").is_disabled()
        assert journal.read_bytes() == before
        press(seen, "Shift+ArrowRight")
        seen.until("at === 5")
        press(seen, "Shift+ArrowLeft")
        seen.until("at === 0")
        assert seen.errors == []


def go_to(seen: Seen, sample: str) -> None:
    press(seen, "g")
    seen.page.keyboard.type(sample)
    press(seen, "Enter")
    seen.until(f"rows[at].key === '{sample}' && document.activeElement.id !== 'jump'")


def test_tags_typed_for_a_sample_do_not_reach_the_next_one(opened: Opened, served: str) -> None:
    with opened(served) as seen:
        go_to(seen, "k00")
        press(seen, "t")
        seen.page.keyboard.type("blurred")
        press(seen, "Control+Enter")
        seen.until("at === 1")
        assert seen.page.evaluate("rows[0].review.tags") == ["blurred"]
        assert seen.page.locator("#tags").input_value() == ""
        press(seen, "Control+Enter")
        seen.until("at === 2")
        press(seen, "Escape", "k")
        seen.until("at === 1")
        assert "blurred" not in (review(seen, "tags") or [])
        assert seen.errors == []


def edit_as_bob(work: Workspace, sample: str, **wanted: object) -> None:
    bench = make_workbench(work.catalog, ViewSettings(author="bob"))
    row = bench.sample("00001", sample)
    web = next(text for text in row["texts"] if text["name"] == "web")
    base = {"base": "web", "digest": web["digest"]} if "text" in wanted else {}
    bench.act("00001", row["uid"], row["version"], {**wanted, **base})


def test_an_edit_of_somebody_else_is_shown_and_not_overwritten(
    opened: Opened, work: Workspace, served: str
) -> None:
    def kept() -> str:
        bench = make_workbench(work.catalog, ViewSettings(author="eve"))
        return str(bench.sample("00001", "k12")["review"]["text"])

    with opened(served) as seen:
        page = seen.page
        go_to(seen, "k12")
        press(seen, "e", "Control+a")
        page.keyboard.type("my draft")
        edit_as_bob(work, "k12", text="of bob")
        press(seen, "Control+Enter")
        seen.until("!document.getElementById('conflict').hidden")
        assert page.locator("#conflict-text").inner_text() == "of bob"
        assert "bob" in page.locator("#conflict-who").inner_text()
        assert page.locator("#caption").input_value() == "my draft"
        assert seen.axe() == []
        press(seen, "Control+Enter")
        seen.until("/keep your text/.test(document.getElementById('said').innerText)")
        press(seen, "Escape", "a", "k")
        seen.until("rows[at].key === 'k11'")
        assert kept() == "of bob"
        page.reload()
        page.wait_for_selector("html[data-ready=yes]")
        go_to(seen, "k12")
        seen.until("!document.getElementById('conflict').hidden")
        press(seen, "d")
        assert page.locator("#caption").input_value() == "of bob"
        assert page.locator("#conflict").is_hidden()
        press(seen, "e", "End")
        page.keyboard.type(" and me")
        edit_as_bob(work, "k12", text="of bob again")
        press(seen, "Control+Enter")
        seen.until("!document.getElementById('conflict').hidden")
        press(seen, "Escape", "m")
        seen.until("rows[at].review?.text === 'of bob and me'")
        assert kept() == "of bob and me"
        press(seen, "t")
        page.keyboard.type("mine")
        edit_as_bob(work, "k12", tags=["his"])
        press(seen, "Enter")
        seen.until("rows[at].review?.tags.includes('his')")
        press(seen, "Enter")
        seen.until("rows[at].review?.tags.join() === 'his,mine'")
        page.evaluate("setDraft(current(), { text: 'an old draft', base: 'web' })")
        page.reload()
        page.wait_for_selector("html[data-ready=yes]")
        go_to(seen, "k12")
        seen.until("!document.getElementById('conflict').hidden")
        press(seen, "k")
        seen.until("rows[at].key === 'k11'")
        assert kept() == "of bob and me"

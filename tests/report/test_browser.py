"""The report in a real browser: texts stay texts, and what it counts is what `capmix mix` keeps."""

import csv
import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import needs_chromium, opened
from samples import sample_members, tar_bytes

from capmix.measure.population import read_sample
from capmix.measure.settings import MeasureSettings
from capmix.workspace import Workspace, open_workspace

pytestmark = needs_chromium

HOSTILE = [
    "<script>window.hacked = 1</script>",
    '"><img src=x onerror="window.hacked = 1">',
    "</script><script>window.hacked = 1</script>",
    "<!--<script>",
    "javascript:window.hacked=1",
    "<a href='javascript:window.hacked=1'>press</a>",
    "\u202egpj.exe \u2066and\u2067 so on",
    "</style></title><iframe src=javascript:window.hacked=1></iframe>",
    "<svg onload=window.hacked=1>",
    "{{ 7 * 7 }} {% raw %} ${window.hacked = 1} \u2028 \u2029",
    "=HYPERLINK(A1)",
    "& < > ' \" \\ \\u003cscript\\u003e",
]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    """36 samples of which raw texts, captions and keys' neighbours are hostile."""
    folder = tmp_path_factory.mktemp("report")
    texts = [HOSTILE[i % len(HOSTILE)] for i in range(36)]
    members = [m for i, text in enumerate(texts) for m in sample_members(f"k{i:02d}", i, text)]
    (folder / "pool").mkdir()
    (folder / "pool/00000.tar").write_bytes(tar_bytes(members))
    with open(folder / "c.csv", "w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["uid", "text"])
        writer.writerows([f"{i:032x}", f"{text} again again again"] for i, text in enumerate(texts))
    made = open_workspace(str(folder / "pool"), str(folder / "work"))
    made.import_captions(
        [str(folder / "c.csv")], source="web", uid_column="uid", text_column="text"
    )
    made.caption("mini", model="mini")
    from capmix.score.settings import ScoreSettings

    made.score(ScoreSettings(model="mini", sources=["raw", "web", "mini"]))
    made.measure(MeasureSettings(model="mini", topics=3, map_points=12))
    made.mix("raw-top+synthetic-above", fraction=0.3, synthetic="mini")
    made.report()
    return made


def url(work: Workspace) -> str:
    return f"file://{work.store.path('report/report.html')}"


def test_nothing_of_a_caption_runs_and_nothing_is_fetched(work: Workspace) -> None:
    with opened(url(work)) as seen:
        page = seen.page
        while page.locator("#more").is_visible():
            page.click("#more")
        assert page.evaluate("window.hacked") is None
        assert page.locator("#examples .example").count() == 36
        texts = page.locator("#examples bdi").all_inner_texts()
        for text in ("<script>window.hacked = 1</script>", "<svg onload=window.hacked=1>"):
            assert text in texts
        assert (
            page.locator("main a, main iframe, main object, main embed, main form a").count() == 0
        )
        assert page.locator("script").count() == 3
        for plot in page.locator(".js-plotly-plot").all():
            plot.hover()
        assert page.evaluate("window.hacked") is None
        assert seen.dialogs == []
        assert seen.errors == []
        assert [
            one for one in seen.requests if not one.startswith(("file:", "data:", "blob:"))
        ] == []


def test_a_script_that_gets_into_the_page_does_not_run(work: Workspace, tmp_path: Path) -> None:
    """The page's policy is a second lock: were a text ever written unescaped, it would not run."""
    page = Path(work.store.path("report/report.html")).read_text("utf-8")
    broken = page.replace("<main id", '<img src=x onerror="window.hacked=1"><script>'
                          "window.hacked=1</script><main id")  # fmt: skip
    (tmp_path / "broken.html").write_text(broken, "utf-8")
    with opened(f"file://{tmp_path}/broken.html") as seen:
        assert seen.page.evaluate("window.hacked") is None


def test_the_copied_recipe_keeps_what_the_page_counts(work: Workspace, tmp_path: Path) -> None:
    with opened(url(work)) as seen:
        page = seen.page
        for source in ("web", "mini"):
            page.locator(f"[data-source={source}]").evaluate(
                "(slider) => { slider.value = Math.round((+slider.min + 2 * +slider.max) / 3);"
                " slider.dispatchEvent(new Event('input')); }"
            )
        page.locator(".threshold", has_text="web").locator("input[type=checkbox]").check()
        slider = page.locator("[data-source=raw]")
        slider.focus()
        before = slider.input_value()
        for _ in range(3):
            page.keyboard.press("ArrowRight")
        assert int(slider.input_value()) == int(before) + 3
        page.get_by_label("mini before").click()
        page.context.grant_permissions(["clipboard-read", "clipboard-write"])
        page.click("#copy")
        seen.until("document.getElementById('copied').textContent === 'copied'")
        recipe = page.locator("#recipe").input_value()
        assert page.evaluate("navigator.clipboard.readText()") == recipe
        kept = {
            source: int(page.locator(f"[data-kept={source}]").inner_text().split()[1])
            for source in ("raw", "web", "mini")
        }
        total = int(page.locator("#kept").get_attribute("data-total") or -1)
        assert page.locator("[name=decided]").input_value() == ""  # since a slider was moved
        page.select_option("[name=decision]", "mini")
        matching = int(page.locator("#matching").get_attribute("data-count") or -1)
    (tmp_path / "copied.yaml").write_text(recipe, "utf-8")
    summary = work.mix(str(tmp_path / "copied.yaml"), out="copied").summary
    rows = work.subset("copied").table()["source"].to_pylist()
    assert {source: rows.count(source) for source in kept} == kept
    assert summary.kept == total == sum(kept.values())
    assert matching == kept["mini"]  # all 36 samples are in the page
    assert 0 < total < 36


def test_samples_are_sorted_and_filtered(work: Workspace) -> None:
    table = read_sample(work.store).to_pylist()
    subset = work.subset("raw-top30+mini-above").table().to_pylist()
    with opened(url(work)) as seen:
        page = seen.page

        def count() -> int:
            return int(page.locator("#matching").get_attribute("data-count") or -1)

        page.select_option("[name=decided]", "raw-top30+mini-above")
        page.select_option("[name=decision]", "raw")
        assert count() == sum(row["source"] == "raw" for row in subset)
        page.select_option("[name=decision]", "-")
        assert count() == 36 - len(subset)
        page.select_option("[name=decision]", "")
        page.select_option("[name=flag]", "loop")
        assert count() == sum("loop" in (row["web_flags"] or []) for row in table)
        page.select_option("[name=flag]", "-")
        assert count() == sum(not row["web_flags"] and not row["mini_flags"] for row in table)
        page.select_option("[name=flag]", "")
        page.select_option("[name=source]", "raw")
        least = sorted(row["raw_score"] for row in table)[20]
        page.fill("[name=least]", f"{least:.4f}")
        assert count() == sum(round(row["raw_score"], 4) >= round(least, 4) for row in table)
        page.fill("[name=least]", "")
        page.select_option("[name=sort]", "-mini")
        best = max(table, key=lambda row: row["mini_score"])["uid"]
        assert page.locator("#examples .example").first.get_attribute("data-uid") == best


def test_a_figures_numbers_are_one_click_away(work: Workspace) -> None:
    with opened(url(work)) as seen:
        button = seen.page.get_by_label("CSV of: Image-text similarity by source")
        with seen.page.expect_download() as saved:
            button.click()
        assert saved.value.suggested_filename == "similarity.csv"
        rows = list(csv.DictReader(io.StringIO(Path(saved.value.path()).read_text("utf-8"))))
    assert len({row["series"] for row in rows}) == 4  # three sources and the threshold
    with opened(url(work)) as seen:
        with seen.page.expect_download() as saved:
            seen.page.get_by_label("CSV of: Map of texts (t-SNE)").click()
        text = Path(saved.value.path()).read_text("utf-8")
    assert "'=HYPERLINK(A1)" in text  # a spreadsheet takes it for text


@pytest.mark.parametrize(
    ("width", "scheme"),
    [(1200, "light"), pytest.param(1200, "dark", marks=pytest.mark.slow), (390, "dark")],
)
def test_axe_finds_nothing_and_a_phone_shows_all(work: Workspace, width: int, scheme: str) -> None:
    with opened(url(work), width, scheme) as seen:
        assert seen.axe() == []
        assert seen.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")

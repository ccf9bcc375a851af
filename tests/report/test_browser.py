"""The report in a browser: texts are not executed, and its counts match `capmix mix`."""

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from browser import Opened, Seen, needs_chromium
from PIL import Image
from samples import sample_members, tar_bytes

from capmix.evaluation.results import MAIN
from capmix.measure.population import read_sample
from capmix.measure.settings import MeasureSettings
from capmix.pipeline.grid import Cell, write_tables
from capmix.training.scales import SCALES
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
    """36 samples with hostile raw texts and captions."""
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


def test_nothing_of_a_caption_runs_and_nothing_is_fetched(opened: Opened, work: Workspace) -> None:
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
        assert page.locator("script").count() == 2
        for plot in page.locator("svg.chart.wide").all():
            plot.hover()
        assert page.evaluate("window.hacked") is None
        assert seen.dialogs == []
        assert seen.errors == []
        assert [
            one for one in seen.requests if not one.startswith(("file:", "data:", "blob:"))
        ] == []


def test_a_script_that_gets_into_the_page_does_not_run(
    opened: Opened, work: Workspace, tmp_path: Path
) -> None:
    """The page's policy is a second line of defence, in case a text is not escaped."""
    page = Path(work.store.path("report/report.html")).read_text("utf-8")
    broken = page.replace("<main id", '<img src=x onerror="window.hacked=1"><script>'
                          "window.hacked=1</script><main id")  # fmt: skip
    (tmp_path / "broken.html").write_text(broken, "utf-8")
    with opened(f"file://{tmp_path}/broken.html") as seen:
        assert seen.page.evaluate("window.hacked") is None


def test_the_copied_recipe_keeps_what_the_page_counts(
    opened: Opened, work: Workspace, tmp_path: Path
) -> None:
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
        page.get_by_label("move mini up").click()
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
        assert page.locator("[name=decided]").input_value() == ""  # set by moving a slider
        page.select_option("[name=decision]", "mini")
        matching = int(page.locator("#matching").get_attribute("data-count") or -1)
    (tmp_path / "copied.yaml").write_text(recipe, "utf-8")
    summary = work.mix(str(tmp_path / "copied.yaml"), out="copied").summary
    rows = work.subset("copied").table()["source"].to_pylist()
    assert {source: rows.count(source) for source in kept} == kept
    assert summary.kept == total == sum(kept.values())
    assert matching == kept["mini"]  # all 36 samples are in the page
    assert 0 < total < 36


def test_samples_are_sorted_and_filtered(opened: Opened, work: Workspace) -> None:
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


def test_a_figures_numbers_are_one_click_away(opened: Opened, work: Workspace) -> None:
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
    assert "'=HYPERLINK(A1)" in text  # not evaluated by spreadsheets


@pytest.mark.parametrize(
    ("width", "scheme"),
    [(1200, "light"), pytest.param(1200, "dark", marks=pytest.mark.slow), (390, "dark")],
)
def test_axe_finds_nothing_and_a_phone_shows_all(
    opened: Opened, work: Workspace, width: int, scheme: str
) -> None:
    with opened(url(work), width, scheme) as seen:
        assert seen.axe() == []
        assert seen.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


GIVEN = {"raw": 13.3, "raw-top20": 14.0, "raw-top50": 15.0, "raw-top80": 13.0, "mini": 16.2,
         "raw-top50+mini": 16.3, "control-mini-shuffled": 2.0}  # fmt: skip


@pytest.fixture(scope="module")
def results(work: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of runs at DataComp's small scale with three seeds each, and its figures."""
    folder = tmp_path_factory.mktemp("results")
    cells = []
    for fraction in (0.2, 0.5, 0.8):
        work.mix("raw-top", fraction=fraction)
    work.mix("raw-top+synthetic", fraction=0.5)
    for recipe in ("raw", "synthetic", "control-synthetic-shuffled"):
        work.mix(recipe)
    for i, (name, average) in enumerate(GIVEN.items()):
        for seed in range(3):
            value = (average + 0.1 * ((seed + i) % 3)) / 100
            groups = {"ImageNet": value / 3, "Retrieval": value * 0.7, "Average": value}
            numbers = {(group, MAIN): one for group, one in groups.items()}
            cells.append(Cell("work", name, 10, seed, numbers))
            run = Path(work.store.path(f"runs/{name}-seed{seed}"))
            run.mkdir(parents=True, exist_ok=True)
            (run / "run.json").write_text(json.dumps({"scale": asdict(SCALES["small"])}))
    write_tables(cells, str(folder), {})
    work.report(
        results=str(folder), recipes=list(GIVEN), out=str(folder / "r.html"),
        figures=str(folder / "figures"), examples=4,
    )  # fmt: skip
    asked = {"results": str(folder), "recipes": list(GIVEN), "examples": 0, "published": False}
    work.report(**asked, out=str(folder / "bare.html"))
    return folder


def column(seen: Seen, name: str) -> list[str]:
    """Return the cells of a column of the table of runs; controls and published rows are last."""
    return seen.page.evaluate(
        """(name) => {
          const table = [...document.querySelectorAll("table")].find(
            (one) => one.caption.textContent.startsWith("Trained runs"));
          const heads = [...table.tHead.rows[0].cells].map((one) => one.textContent.trim());
          const rows = [...table.tBodies].flatMap((one) => [...one.rows]);
          return rows.filter((row) => row.cells.length > 1 && row.offsetParent !== null)
            .map((row) => row.cells[heads.indexOf(name)].firstChild.textContent.trim());
        }""",
        name,
    )


def test_the_first_screen_is_the_answer_and_tables_are_sorted_and_switched(
    opened: Opened, results: Path
) -> None:
    published = ["No filtering", "Basic filter", "Text-based (ImageNet-21k)",
                 "Image-based (ImageNet-1k)", "LAION-2B filter", "CLIP score L/14, top 30%",
                 "Image-based ∩ CLIP score 30%"]  # fmt: skip
    best = ["raw-top50+mini", "mini", "raw-top50", "raw-top20", "raw", "raw-top80"]
    with opened(f"file://{results}/r.html", 1280) as seen:
        page = seen.page
        said = page.locator("h2").first
        assert (
            said.inner_text()
            .replace("\u00a0", " ")
            .startswith("raw-top50+mini: +3.0 points over raw [")
        )
        assert "mixing is not distinguishable from synthetic alone" in said.inner_text()
        chart = page.locator("svg.chart.wide").first
        assert chart.bounding_box()["y"] + chart.bounding_box()["height"] < 800
        assert "raw-top" in (chart.text_content() or "")
        assert page.title().startswith("pool · capmix report · ")
        assert column(seen, "recipe") == [*best, "control-mini-shuffled", *published]
        runs = page.get_by_role("region", name="Trained runs by recipe")
        assert column(seen, "average")[6:] == [
            "2.1",
            "–",
            "14.2",
            "15.7",
            "–",
            "13.3",
            "17.3",
            "14.5",
        ]
        runs.get_by_role("button", name="ImageNet", exact=True).click()
        shares = column(seen, "ImageNet")
        assert shares[:7] == ["5.5", "5.4", "5.0", "4.7", "4.5", "4.4", "0.7"]
        assert shares[7:] == ["5.1", "4.6", "4.3", "3.9", "3.8", "3.1", "2.5"]
        runs.get_by_role("button", name="ImageNet", exact=True).click()
        assert column(seen, "recipe")[:6] == best[::-1]
        assert page.locator("th[aria-sort=ascending]").inner_text().startswith("ImageNet")
        runs.get_by_role("button", name="average", exact=True).click()
        assert column(seen, "average")[-2:] == ["–", "–"]
        before = page.locator("#figure-recipes + svg").bounding_box()["height"]
        page.uncheck("#published")
        assert column(seen, "recipe") == [*best, "control-mini-shuffled"]
        assert not page.locator(".published").filter(visible=True).count()
        assert page.locator("#figure-recipes + svg").bounding_box()["height"] < before - 100
        assert seen.errors == []


def test_published_rows_can_be_left_out(results: Path) -> None:
    assert "CLIP score L/14" in (results / "r.html").read_text("utf-8")
    assert "CLIP score L/14" in (results / "figures/recipes.csv").read_text("utf-8")
    assert "CLIP score L/14" not in (results / "bare.html").read_text("utf-8")


def test_no_labels_overlap_and_colours_are_those_of_the_files(
    opened: Opened, results: Path
) -> None:
    """Text boxes are measured by Chromium."""
    overlaps = """() => [...document.querySelectorAll("svg.chart")].flatMap((chart) => {
      const boxes = [...chart.querySelectorAll("text")].map(
        (one) => [one.textContent, one.getBoundingClientRect()]).filter(([, box]) => box.width);
      return boxes.flatMap(([name, a], i) => boxes.slice(0, i).filter(([, b]) =>
        a.left < b.right && b.left < a.right && a.top + 3 < b.bottom - 3 && b.top + 3 < a.bottom - 3
      ).map(([other]) => `${name} | ${other}`));
    })"""
    with opened(f"file://{results}/r.html", 390, "dark") as seen:
        assert seen.page.evaluate(overlaps) == []
        assert seen.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        order = ["recipe", "average", "against raw [95%]"]
        heads = seen.page.locator("table").first.locator("thead th").all_inner_texts()
        assert [head.replace("\u00a0", " ").removesuffix(" ↕") for head in heads[:3]] == order
        average = seen.page.locator("table").first.locator("tbody td").first.bounding_box()
        assert average["x"] + average["width"] <= 390
        assert seen.axe() == []
    with opened(f"file://{results}/r.html") as seen:
        assert seen.page.evaluate(overlaps) == []
        painted = {
            name: seen.page.evaluate(
                "(name) => getComputedStyle([...document.querySelectorAll('[data-tip]')]"
                ".find((one) => one.dataset.tip.startsWith(name + ': ') "
                "&& one.closest('.wide'))).stroke",
                name,
            )
            for name in ("raw", "raw-top20")
        }
    assert painted == {"raw": "rgb(63, 127, 220)", "raw-top20": "rgb(63, 127, 220)"}
    pixels = matplotlib.image.imread(results / "figures/recipes.png")
    colours = {tuple(one) for one in np.round(255 * pixels[..., :3]).astype(int).reshape(-1, 3)}
    assert (63, 127, 220) in colours


def test_every_figure_of_the_page_is_written_as_pdf_png_and_csv(results: Path) -> None:
    text = (results / "r.html").read_text("utf-8").partition('id="data">')[2]
    data = json.loads(text.partition("</script>")[0])
    named = {one["name"] for one in data["figures"]}
    assert named >= {"fractions", "recipes", "imagenet", "similarity", "map"}
    written = {path.name for path in (results / "figures").iterdir()}
    assert written == {f"{name}.{form}" for name in named for form in ("pdf", "png", "csv")}
    for name in named:
        assert (results / f"figures/{name}.pdf").read_bytes().startswith(b"%PDF")
        assert matplotlib.image.imread(results / f"figures/{name}.png").shape[1] == 1280


def test_a_folder_of_captioned_images_opens_with_them(opened: Opened, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for i in range(3):
        Image.effect_noise((64, 64), 60 + i).save(tmp_path / f"photos/IMG_{i}.png")
    made = open_workspace(str(tmp_path / "photos"), str(tmp_path / "work"))
    made.caption("mini", model="mini")
    path, table = made.report(out=str(tmp_path / "r.html"))
    assert table == []
    with opened(f"file://{path}", 1280) as seen:
        page = seen.page
        assert page.locator("h2").first.inner_text() == "3 images, captioned by mini"
        assert page.locator(".example img").first.bounding_box()["y"] < 400
        assert page.locator(".example .who").all_inner_texts() == ["mini"] * 3
        assert page.locator("svg.chart").count() == 0
        assert not page.locator("#filters label").filter(visible=True).count()
        assert seen.errors == []

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from samples import sample_members, tar_bytes, write_pool

from capmix.caption.settings import CaptionSettings
from capmix.errors import UserError
from capmix.measure.settings import MeasureSettings
from capmix.mix.mix import Summary
from capmix.report.figure import Figure, Series
from capmix.report.gather import FoundSubset, gather
from capmix.report.page import _with_bounds
from capmix.report.settings import ReportSettings
from capmix.workspace import Workspace, open_workspace

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</style></title><iframe src=javascript:alert(1)>",
    "‮gpj.exe {{ 7 * 7 }} {% raw %}",
    "& < > ' \" </script>",
]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    folder = tmp_path_factory.mktemp("page")
    texts = HOSTILE * 5
    members = [m for i, text in enumerate(texts) for m in sample_members(f"k{i:02d}", i, text)]
    (folder / "pool").mkdir()
    (folder / "pool/00000.tar").write_bytes(tar_bytes(members))
    made = open_workspace(str(folder / "pool"), str(folder / "work"))
    made.caption("mini", model="mini")
    made.score(model="mini")
    made.mix("raw-top+synthetic", fraction=0.4)
    return made


def data_of(page: str) -> dict:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    assert found is not None
    return json.loads(found[1])


def test_the_page_is_one_file_and_texts_are_escaped(work: Workspace, tmp_path: Path) -> None:
    """`capmix measure` was not run before."""
    path, _ = work.report(out=str(tmp_path / "out/page.html"))
    page = Path(path).read_text("utf-8")
    assert page.count("<script") - page.count('"<script') <= 2
    ours = page[: page.index('id="data"')] + page[page.rindex("</main>") :][:20]
    assert "alert(1)" not in ours
    data = data_of(page)
    assert {row["texts"]["raw"]["text"] for row in data["examples"]} == set(HOSTILE)
    assert all(row["image"].startswith("data:image/webp;base64,") for row in data["examples"])
    assert {row["decisions"]["raw-top40+mini"] for row in data["examples"]} == {"raw", "mini"}
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page)
    assert policy is not None
    assert "unsafe-eval" not in policy[1]
    assert re.search(r"script-src (&#39;|')sha256-", policy[1])
    assert len(page) < 200_000
    links = re.findall(r'(?:src|href)="(?!data:|#)([^"]+)"', page[: page.index('id="data"')])
    assert links == []


def test_the_date_is_source_date_epoch_where_it_is_set(
    work: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1767225659")
    pages = [work.report(out=str(tmp_path / name))[0] for name in ("a.html", "b.html")]
    first, second = (Path(page).read_bytes() for page in pages)
    assert first == second
    assert b"Written 2026-01-01 00:00 UTC" in first
    assert b"capmix report \xc2\xb7 1 January 2026" in first
    for wrong in ("soon", "1e9", "9" * 30):
        monkeypatch.setenv("SOURCE_DATE_EPOCH", wrong)
        with pytest.raises(UserError, match="SOURCE_DATE_EPOCH=.*expected seconds since 1970"):
            work.report(out=str(tmp_path / "c.html"))


def test_figures_are_written_for_papers(work: Workspace, tmp_path: Path) -> None:
    out, figures = str(tmp_path / "p.html"), str(tmp_path / "f")
    work.report(ReportSettings(examples=0), out=out, figures=figures)
    names = {path.name for path in (tmp_path / "f").iterdir()}
    assert names == {"similarity.pdf", "similarity.png", "similarity.csv"}
    assert (tmp_path / "f/similarity.pdf").read_bytes().startswith(b"%PDF")
    assert data_of((tmp_path / "p.html").read_text("utf-8"))["examples"] == []


def test_a_pool_without_scores_has_a_report(tmp_path: Path) -> None:
    """The pool's name is untrusted and is escaped."""
    pool = str(write_pool(tmp_path / "<b>a pool"))
    work = open_workspace(pool, str(tmp_path / "work"))
    path, table = work.report()
    page = Path(path).read_text("utf-8")
    assert "<h1>&lt;b&gt;a pool</h1>" in page
    assert "<title>&lt;b&gt;a pool · capmix report · " in page
    assert "8 images, not captioned yet</h2>" in page
    data = data_of(page)
    assert table == []
    assert data["steps"] is None
    assert len(data["examples"]) == 8


def test_csv_has_intervals_and_labels() -> None:
    figure = Figure(
        "f", "F", "about", "x", "y",
        [Series("a", [1.0], [2.0], low=[1.5], high=[2.5], labels=["@sum(1)"])],
        marks=[("t", 0.5)],
    )  # fmt: skip
    assert figure.csv().splitlines() == [
        "series,x,y,low,high,label", "a,1.0,2.0,1.5,2.5,'@sum(1)", "t,0.5,,,,"
    ]  # fmt: skip


def test_a_work_directory_elsewhere_takes_its_report(tmp_path: Path) -> None:
    work = open_workspace(str(write_pool(tmp_path / "pool")), "memory://report-test/work")
    path, _ = work.report()
    assert path == work.store.path("report/report.html")
    assert work.store.exists("report/report.html")


def test_unknown_names_are_errors(work: Workspace, tmp_path: Path) -> None:
    out = str(tmp_path / "p.html")
    for asked, message in (
        ({"recipes": ["typo"]}, "no subset 'typo'; found raw-top40"),
        ({"results": str(tmp_path)}, "no results/summary.parquet"),
        ({"settings": ReportSettings(examples_of="zz")}, "--examples-of: no subset 'zz'; found"),
    ):
        with pytest.raises(UserError, match=message):
            work.report(out=out, **asked)


def test_what_was_made_of_other_texts_is_left_out_and_said(tmp_path: Path) -> None:
    """After new captions of the same name, subset, probes and measures are outdated."""
    work = open_workspace(str(write_pool(tmp_path / "pool")), str(tmp_path / "work"), force=True)
    measures = MeasureSettings(
        model="mini", topics=2, map_points=10, references="source:raw", java=False
    )
    work.caption("mini", model="mini")
    work.score(model="mini")
    work.measure(measures)
    work.mix("synthetic")
    work.mix("raw")
    before = Path(work.report()[0]).read_text("utf-8")
    assert "left out" not in before.partition('id="data"')[0].partition("<main")[0]
    assert "CIDEr" in before
    assert 'aria-label="Topics by recipe"' in before
    work.caption("mini", CaptionSettings(model="mini", temperature=3.0))
    work.score(model="mini")
    after = Path(work.report()[0]).read_text("utf-8")
    head = after.partition("<main")[0]
    assert "The subset mini is left out" in head
    assert "The nouns, languages and openings are left out" in head
    assert "The topics and map are left out" in head
    assert "The reference metrics are left out" in head
    assert 'aria-label="Topics by recipe"' not in after
    assert data_of(after)["subsets"] == ["raw"]


def recipe(*clauses: tuple[str, str], thresholds: dict[str, float]) -> FoundSubset:
    summary = Summary("s", 10, 5, {}, dict(thresholds), {}, 0.5, "")
    made = [{"source": source, "where": where, "weight": "1"} for source, where in clauses]
    return FoundSubset("s", summary, {"clauses": made, "shuffle": False, "distinct": None})


def test_sliders_start_at_the_thresholds_of_the_shown_recipe() -> None:
    steps = {"sources": ["raw", "keywords", "mini"], "unit": 1, "scale": 100,
             "cells": [[10, 5, 20, 1], [40, 6, 60, 2], [None, 7, 30, 1]]}  # fmt: skip
    top = {"threshold(raw_score, 0.3)": 0.31, "threshold(mini_score, 0.1)": 0.47}
    both = recipe(("mini", "top(mini_score, 0.1)"), ("raw", "top(raw_score, 0.3)"), thresholds=top)
    found = _with_bounds(steps, both)
    assert found["start"] == [31, 5, 47]
    assert found["used"] == [True, False, True]
    assert found["order"] == [2, 0, 1]
    rest = recipe(("raw", "raw_score >= threshold(raw_score, 0.3)"), ("mini", "true"),
                  thresholds={"threshold(raw_score, 0.3)": 0.31})  # fmt: skip
    assert _with_bounds(steps, rest)["start"] == [31, 5, 20]
    size = recipe(("raw", "top(width, 0.5)"), thresholds={"threshold(width, 0.5)": 300.0})
    assert _with_bounds(steps, size)["start"] == [10, 5, 20]
    plain = recipe(("mini", "mini_score >= 0.25"), thresholds={})
    assert _with_bounds(steps, plain)["start"] == [10, 5, 25]
    assert _with_bounds(steps, None)["used"] == [True, True, True]


def test_strategies_and_sources_are_read_from_recipes() -> None:
    subset = recipe(("blip2", "true"), thresholds={})
    assert subset.only_source == "blip2"
    assert replace(subset, recipe=subset.recipe | {"distinct": "raw_text"}).only_source is None
    named = replace(
        subset, name="blip2-top2", recipe=subset.recipe | {"parameters": {"fraction": 0.02}}
    )
    assert named.strategy == "blip2-top"


def test_topics_are_shown_for_the_subsets_whose_sources_were_measured(tmp_path: Path) -> None:
    work = open_workspace(str(write_pool(tmp_path / "pool")), str(tmp_path / "work"))
    work.caption("mini", model="mini")
    work.score(model="mini")
    work.measure(MeasureSettings(model="mini", topics=2, map_points=10, sources=["raw"]))
    for recipe in ("raw", "synthetic"):
        work.mix(recipe)
    assert list(gather(work.catalog, work.catalog.scorer(None), None).topics) == ["raw"]

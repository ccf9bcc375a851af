import json
import re
from pathlib import Path

import pytest
from samples import sample_members, tar_bytes, write_pool

from capmix import jobs
from capmix.report.figure import Figure, Series
from capmix.report.page import PageSettings

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</style></title><iframe src=javascript:alert(1)>",
    "‮gpj.exe {{ 7 * 7 }} {% raw %}",
    "& < > ' \" </script>",
]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> jobs.Work:
    folder = tmp_path_factory.mktemp("page")
    members = [m for i, text in enumerate(HOSTILE) for m in sample_members(f"k{i}", i, text)]
    (folder / "pool").mkdir()
    (folder / "pool/00000.tar").write_bytes(tar_bytes(members))
    made = jobs.open_work(str(folder / "pool"), str(folder / "work"))
    jobs.caption(made, "mini")
    jobs.score(made)
    jobs.mix(made, "raw-top+synthetic", {"fraction": 0.4})
    return made


def data_of(page: str) -> dict:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    assert found is not None
    return json.loads(found[1])


def test_the_page_is_one_file_and_texts_are_escaped(work: jobs.Work, tmp_path: Path) -> None:
    """Without `capmix measure` before it."""
    path, _ = jobs.report(work, str(tmp_path / "out/page.html"))
    page = Path(path).read_text("utf-8")
    assert page.count("<script") - page.count('"<script') <= 3 + 5  # plotly.js has some in strings
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
    assert len(page) < 15_000_000
    links = re.findall(r'(?:src|href)="(?!data:|#)([^"]+)"', page[: page.index('id="data"')])
    assert links == []


def test_figures_are_written_for_papers(work: jobs.Work, tmp_path: Path) -> None:
    jobs.report(work, str(tmp_path / "p.html"), figures=str(tmp_path / "f"),
                settings=PageSettings(examples=0))  # fmt: skip
    names = {path.name for path in (tmp_path / "f").iterdir()}
    for name in ("similarity", "diversity-trigrams"):
        assert {f"{name}.pdf", f"{name}.png", f"{name}.csv"} <= names
    assert (tmp_path / "f/similarity.pdf").read_bytes().startswith(b"%PDF")
    assert data_of((tmp_path / "p.html").read_text("utf-8"))["examples"] == []


def test_a_pool_without_scores_has_a_report(tmp_path: Path) -> None:
    work = jobs.open_work(str(write_pool(tmp_path / "pool")), str(tmp_path / "work"))
    path, table = jobs.report(work)
    data = data_of(Path(path).read_text("utf-8"))
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

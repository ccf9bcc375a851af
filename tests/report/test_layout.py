from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capmix.report.figure import Figure, FigureRow, Series
from capmix.report.layout import Axis, laid_out
from capmix.report.scene import Dot, Text, dodged, shortened, spread, text_width

WIDTHS = (356, 548, 620, 1000)
places = st.lists(st.floats(0, 300), max_size=12)


@given(places)
def test_texts_beside_lines_are_apart_and_in_order(wanted: list[float]) -> None:
    found = spread(wanted, 15, 0, 300)
    assert all(abs(a - b) >= 15 - 1e-4 for a, b in combinations(found, 2))
    pairs = sorted(zip(wanted, found, strict=True))
    assert [place for _, place in pairs] == sorted(found)


def test_what_is_apart_stays_where_it_is() -> None:
    assert spread([100.0, 20.0, 60.0], 15, 0, 300) == [100.0, 20.0, 60.0]
    assert dodged([(0.0, 0.0), (50.0, 0.0)], 10) == [(0.0, 0.0), (50.0, 0.0)]


def test_points_at_one_place_are_moved_no_further_than_it_takes() -> None:
    assert sorted(dodged([(5.0, 5.0), (5.0, 5.0)], 10)) == [(5.0, 0.0), (5.0, 10.0)]


def test_long_names_keep_both_ends() -> None:
    short = shortened("raw-top30+mini-above-with-more", 100)
    assert text_width(short) <= 100
    assert short.startswith("raw")
    assert short.endswith("more")


def test_ticks_are_round_and_on_the_axis() -> None:
    assert Axis(0, 34, 0, 500).ticks(4) == [0, 10, 20, 30]
    assert Axis(280, 2400, 0, 500, log=True).ticks(4) == [500, 1000, 2000]


def sweep(strategy: str, offset: float) -> Series:
    x = [i / 10 for i in range(1, 11)]
    y = [10 + offset + value for value in x]
    marks = ["tie"] * 9 + ["best"]
    return Series(strategy, x, y, low=y, high=y, colour="#3f7fdc", marks=marks)


FIGURES = [
    Figure(
        "fractions", "", "", "fraction", "average, %",
        [sweep("raw-top", 0), sweep("mini-top", 0.01), sweep("raw-top+mini-above-and-more", 0.02)],
        levels=[("raw", 11.0)], published=[("CLIP score L/14, top 30%", 11.0), ("Basic", 11.01)],
    ),
    Figure(
        "points", "", "", "ImageNet, %", "retrieval, %",
        [
            Series(f"recipe-{i}", [30 + i % 6 / 50], [20 + i / 90], "points", colour="#3f7fdc")
            for i in range(30)
        ],
    ),
    Figure(
        "recipes", "", "", "average, % (95% interval)", "recipe",
        rows=[
            FigureRow(f"a-long-name-of-a-recipe-that-is-number-{i}", 30 - i, 29 - i, 31 - i,
                      mark="lower" if i else "best",
                      group="" if i < 20 else "Controls" if i < 26 else "Published, DataComp small",
                      difference=(12.5, 9.1, 15.7))
            for i in range(30)
        ],
        baseline="raw",
    ),
    Figure(
        "similarity", "", "", "cosine similarity", "% of texts",
        [
            Series(name, [i / 50 for i in range(50)], [min(i, 50 - i + n) for i in range(50)],
                   "steps", short=f"{name}, mean 0.123", colour="#3f7fdc")
            for n, name in enumerate(("raw", "keywords", "mini"))
        ],
        marks=[("threshold(raw_score, 0.3)", 0.5), ("threshold(mini_score, 0.3)", 0.52)],
    ),
]  # fmt: skip


@pytest.mark.parametrize("figure", FIGURES, ids=lambda figure: figure.name)
@pytest.mark.parametrize("width", WIDTHS)
def test_no_text_overlaps_another_or_leaves_the_figure(figure: Figure, width: int) -> None:
    scene = laid_out(figure, width)
    texts = [shape for shape in scene.shapes if isinstance(shape, Text) and shape.text]
    for one, other in combinations(texts, 2):
        assert not one.box.overlaps(other.box), (one.text, other.text)
    assert all(one.box.left >= -1 and one.box.right <= width + 1 for one in texts)
    assert all(one.box.top >= 0 and one.box.bottom <= scene.height + 1 for one in texts)


def test_no_marker_overlaps_another() -> None:
    scene = laid_out(FIGURES[1], 548)
    dots = [shape.at for shape in scene.shapes if isinstance(shape, Dot)]
    assert len(dots) == 30
    assert all((a[0] - b[0]) ** 2 + (a[1] - b[1]) ** 2 >= 9**2 for a, b in combinations(dots, 2))


def test_without_what_is_published_a_figure_ends_before_it() -> None:
    scene = laid_out(FIGURES[2], 1000)
    cut = [shape for shape in scene.shapes if isinstance(shape, Text) and shape.part == "published"]
    kept = [shape for shape in scene.shapes if isinstance(shape, Text) and not shape.part]
    assert len(cut) == 1 + 4 * 3
    assert all(one.box.top >= scene.short - 1 for one in cut)
    assert all(one.box.bottom <= scene.short + 1 for one in kept)

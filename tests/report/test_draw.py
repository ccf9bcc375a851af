import io
import re
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from capmix.report.draw import INCH, MARGIN, PIXELS, write_figures
from capmix.report.figure import Figure, FigureRow, Series
from capmix.report.layout import laid_out
from capmix.report.palette import MIXED, OTHER, Palette
from capmix.report.scene import Dot
from capmix.report.svg import svg

NAMES = {"raw": ["raw"], "mini": ["mini"], "raw-top30+mini": ["raw", "mini"]}
HOSTILE = '<script>"$x^2$\u202e'


@pytest.fixture
def figure() -> Figure:
    palette = Palette(["mini", "raw"])
    rows = [FigureRow(name, 10.0 * i, colour=palette.of(sources))
            for i, (name, sources) in enumerate(NAMES.items())]  # fmt: skip
    return Figure("recipes", "Recipes", "about", "average, %", "recipe", rows=rows)


def test_a_source_has_one_colour_whatever_the_order_and_what_is_drawn() -> None:
    first, second = Palette(["raw", "mini", "blip2"]), Palette(["mini", "raw", "blip2"])
    assert first.of(["raw"]) == second.of(["raw"]) == "#3f7fdc"
    assert first.of(["mini"]) == "#c26a00"
    assert first.of(["raw", "mini"]) == first.of(["mini", "blip2"]) == MIXED
    assert first.of(["unknown"]) == OTHER
    assert len({first.of([name]) for name in ("raw", "mini", "blip2")} | {MIXED, OTHER}) == 5


def test_page_and_png_have_the_same_colours_at_the_same_places(
    figure: Figure, tmp_path: Path
) -> None:
    paths = write_figures([figure], str(tmp_path))
    assert [Path(path).name for path in paths] == ["recipes.pdf", "recipes.png"]
    pixels = matplotlib.image.imread(io.BytesIO((tmp_path / "recipes.png").read_bytes()))
    scene = laid_out(figure, PIXELS)
    page = svg(scene, "about", "wide")
    dots = [shape for shape in scene.shapes if isinstance(shape, Dot)]
    assert len(dots) == 3
    for dot in dots:
        x, y = ((value + MARGIN) * INCH * 200 for value in dot.at)
        rgb = np.round(255 * pixels[int(y), int(x), :3]).astype(int).tolist()
        assert "#" + "".join(f"{one:02x}" for one in rgb) == dot.colour
        assert f'fill="{dot.colour}"' in page
    assert b"/CreationDate" not in (tmp_path / "recipes.pdf").read_bytes()


def test_names_are_texts_in_every_form(tmp_path: Path) -> None:
    figure = Figure(
        "f", "F", HOSTILE, HOSTILE, HOSTILE,
        [Series(HOSTILE, [1.0, 2.0], [1.0, 3.0], labels=[HOSTILE, HOSTILE])],
        marks=[(HOSTILE, 1.5)],
    )  # fmt: skip
    page = str(svg(laid_out(figure, 548), figure.about, "wide"))
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert re.search(r'data-tip="[^"<]*"', page)
    write_figures([figure], str(tmp_path))
    assert (tmp_path / "f.pdf").read_bytes().startswith(b"%PDF")


def test_points_of_a_map_are_translucent_so_that_their_density_is_seen(tmp_path: Path) -> None:
    """In the PNG and in the page, overlapping dots are darker than a single dot."""
    cloud = Series("a", [0.0, 0.5, 1.0] + [1.0] * 20, [0.5] * 23, "cloud", colour="#000000")
    figure = Figure("map", "Map", "about", "", " ", [cloud])
    write_figures([figure], str(tmp_path))
    pixels = matplotlib.image.imread(io.BytesIO((tmp_path / "map.png").read_bytes()))
    dots = [one for one in laid_out(figure, PIXELS).shapes if isinstance(one, Dot)]
    legend, _, alone, *crowd = dots
    grey = []
    for dot in (legend, alone, crowd[-1]):
        x, y = ((value + MARGIN) * INCH * 200 for value in dot.at)
        grey.append(float(pixels[int(y), int(x), :3].mean()))
    assert grey[0] == 0.0
    assert 0.3 < grey[1] < 0.7
    assert grey[2] < 0.01
    page = str(svg(laid_out(figure, 548), figure.about, "wide"))
    assert page.count(f'fill-opacity="{alone.opacity:g}"') == 23
    assert alone.radius < 2

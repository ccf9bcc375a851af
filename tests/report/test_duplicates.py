"""The section with near duplicates, in a page and in a browser."""

import io
import os
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from browser import Opened, needs_chromium, one_browser
from PIL import Image
from samples import image_bytes, tar_bytes

from capmix.report.duplicates import MEMBERS
from capmix.workspace import Workspace, open_workspace

pytest.importorskip("imagehash")
HOSTILE = '"><img src=x onerror=alert(1)>'


def recompressed(seed: int, quality: int) -> bytes:
    out = io.BytesIO()
    picture = Image.open(io.BytesIO(image_bytes(seed, (160, 120), "PNG")))
    picture.resize((80 + quality, 60 + quality)).save(out, "JPEG", quality=quality)
    return out.getvalue()


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Return a pool of two shards: image I has 10 - I copies, for I from 1 to 9."""
    folder = tmp_path_factory.mktemp("duplicates")
    images = [(seed, copy) for seed in range(1, 10) for copy in range(10 - seed)]
    order = np.random.default_rng(0).permutation(len(images))
    (folder / "pool").mkdir()
    for shard in range(2):
        members = []
        for place in order[shard::2]:
            seed, copy = images[place]
            key = f"{seed}-{copy}" if copy else f"{seed}{HOSTILE.replace('.', '')}"
            members.append((f"{key}.jpg", recompressed(seed, 60 + 4 * copy)))
            members.append((f"{key}.txt", HOSTILE.encode()))
        (folder / f"pool/{shard}.tar").write_bytes(tar_bytes(members))
    made = open_workspace(str(folder / "pool"), str(folder / "work"))
    made.annotate(method="image")
    return made


def test_the_largest_groups_are_in_the_page_and_names_are_escaped(work: Workspace) -> None:
    page = Path(work.report()[0]).read_text("utf-8")
    section = page[page.index('<h2 id="duplicates">') :]
    section = section[: section.index("</section>")]
    assert "44 images are in 8 groups" in " ".join(section.split())
    assert "9 images are left" in " ".join(section.split())
    assert re.findall(r"<b>(\d+) images</b>", section) == [*"98765432"]
    assert section.count("data:image/webp;base64,") == 3 * MEMBERS + 5 + 4 + 3 + 2 + MEMBERS
    assert "and 3 more" in section
    assert "<img src=x" not in section
    assert "&lt;img src=x" in section


def test_an_annotation_of_another_pool_is_left_out(work: Workspace, tmp_path: Path) -> None:
    part = "columns/image_phash/0"
    marker = work.store.read_marker(part)
    assert marker is not None
    work.store.remove_marker(part)
    try:
        page = Path(work.report(out=str(tmp_path / "page.html"))[0]).read_text("utf-8")
    finally:
        work.store.write_marker(part, marker)
    assert '<h2 id="duplicates">' not in page
    assert "The near duplicates are left out" in page


@pytest.fixture(scope="module")
def opened() -> Iterator[Opened]:
    with one_browser() as found:
        yield found


@needs_chromium
def test_groups_are_visible_in_a_browser(opened: Opened, work: Workspace, tmp_path: Path) -> None:
    path = Path(work.report()[0]).resolve()
    for width, scheme in ((1200, "light"), (390, "dark")):
        with opened(f"file://{path}", width=width, scheme=scheme) as seen:
            assert seen.axe() == []
            assert seen.errors == []
            assert seen.dialogs == []
            section = seen.page.locator("section", has=seen.page.locator("#duplicates"))
            section.scroll_into_view_if_needed()
            seen.until(
                "[...document.querySelectorAll('.strip img')].slice(0, 6)"
                ".every((one) => one.naturalWidth > 0)"
            )
            wide = seen.page.evaluate("document.documentElement.scrollWidth")
            assert wide <= width
            folder = Path(os.environ.get("CAPMIX_SCREENSHOTS", tmp_path))
            section.screenshot(path=str(folder / f"duplicates-{width}.png"))

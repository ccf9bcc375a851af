"""The recipes and commands of docs/recipes.md work on a pool with the columns that they use."""

import json
import re
import shlex
from pathlib import Path

import pytest
from samples import image_bytes, tar_bytes

from capmix.cli.main import main
from capmix.workspace import Workspace, open_workspace

PAGE = (Path(__file__).parents[2] / "docs/recipes.md").read_text("utf-8")
SAMPLES = 6


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Samples with fields of DataComp, captions by blip2, and scores of both."""
    folder = tmp_path_factory.mktemp("docs")
    (folder / "pool").mkdir()
    members = []
    for number in range(SAMPLES):
        about = {
            "uid": f"{number:032x}", "original_width": 600, "punsafe": number / 100,
            "clip_b32_similarity_score": 0.4, "face_bboxes": [],
            "url": f"http://a/{number % 5}", "title": "Page" if number else None,
            "tags": ["red", "car"],
        }  # fmt: skip
        members += [(f"{number:09d}.jpg", image_bytes(number, (300, 300)))]
        members += [(f"{number:09d}.json", json.dumps(about).encode())]
        members += [(f"{number:09d}.txt", b"raw %d" % number)]
    (folder / "pool/00000.tar").write_bytes(tar_bytes(members))
    opened = open_workspace(str(folder / "pool"), str(folder / "work"))
    opened.index()
    values = {"text": "a photo of Photo {number}", "score": "0.{number}"}
    for name, value in values.items():
        rows = [f"{number:032x},{value.format(number=number)}\n" for number in range(SAMPLES)]
        (folder / f"{name}.csv").write_text(f"uid,{name}\n" + "".join(rows))
    opened.import_captions(folder / "text.csv", source="blip2")
    for source in ("raw", "blip2"):
        opened.import_scores(folder / "score.csv", source=source, scorer="clip")
    return opened


@pytest.mark.parametrize("block", re.findall(r"```yaml\n(.*?)```", PAGE, re.S))
def test_a_recipe_of_the_page_keeps_rows(work: Workspace, block: str, tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text(block, "utf-8")
    assert len(work.mix(str(tmp_path / "my.yaml"))) >= 1


def test_the_composed_recipe_of_the_page_makes_these_texts(work: Workspace, tmp_path: Path) -> None:
    (block,) = re.findall(r"```yaml\n# styled.yaml\n(.*?)```", PAGE, re.S)
    (tmp_path / "my.yaml").write_text(block, "utf-8")
    assert work.mix(str(tmp_path / "my.yaml")).table()["text"].to_pylist() == [
        *(f"sks style, Photo {number}" for number in (0, 1, 2)),
        *(f"sks style, a photo of photo {number}, Page" for number in (3, 4, 5)),
    ]


@pytest.mark.parametrize(
    "line", [one for one in PAGE.splitlines() if re.match(r"capmix mix .*--where \"", one)]
)
def test_a_command_with_a_condition_runs(work: Workspace, line: str) -> None:
    words = shlex.split(line)[1:]
    words[words.index("work")] = work.store.root
    assert main(words) == 0

"""Without extras, each command of the README works or prints the command that installs an extra.

The packages of all extras are hidden from the import system of a fresh process.
"""

import subprocess
import sys
from pathlib import Path

import pytest
from samples import write_pool

from capmix.models.registry import EXTRAS

HIDDEN = sorted({*EXTRAS, "nltk", "huggingface_hub", "requests", "braceexpand"})
RUN = f"""
import sys
from importlib.machinery import PathFinder

class Base(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.partition(".")[0] in {HIDDEN}:
            return None
        return super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Base
from capmix.cli.main import main
sys.exit(main(sys.argv[1:]))
"""
BLIP2, COCA = "Salesforce/blip2-opt-2.7b", "open_clip:coca_ViT-L-14/mscoco_finetuned"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pool, and a work directory with the parts that a base install can write."""
    place = tmp_path_factory.mktemp("base")
    write_pool(place / "shards", 1, 4)
    for command in (
        "caption shards --work W --source given --model field:caption",
        "mix --work W --recipe raw",
    ):
        assert run(place, command)[0] == 0
    return place


def run(place: Path, command: str) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-c", RUN, *command.split()],
        cwd=place, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        ("doctor", "torch is not installed"),
        ("recipes", "raw-top+synthetic-above"),
        ("models", "pip install 'capmix[transformers]'"),
        ("status --work W", "captions/given"),
        ("failures --work W", "no failed or dropped samples"),
        ("measure --work W", "given"),
        ("export --work W --subset raw --out mixed", ""),
        ("run --schema", "properties"),
    ],
)
def test_what_needs_no_extra_works(place: Path, command: str, shown: str) -> None:
    code, out, err = run(place, command)
    assert code == 0, err
    assert shown in out + err


@pytest.mark.parametrize(
    ("command", "needed"),
    [
        ("demo", "'capmix[demo]'"),
        ("report --work W", "'capmix[report]'"),
        ("report --work W --figures figures", "'capmix[report]'"),
        ("caption --work W --source mini --model mini", "'capmix[mini]'"),
        (f"caption --work W --source b --model {BLIP2}", "'capmix[transformers]'"),
        (f"caption --work W --source b --model {COCA}", "'capmix[open_clip]'"),
        ("caption --work W --source b --model field:caption --engine ray", "'capmix[ray]'"),
        ("caption --work W --source b --model field:caption --language en", "'capmix[language]'"),
        ("score --work W --model mini", "'capmix[mini]'"),
        ("score --work W --model ViT-B-32/openai", "'capmix[open_clip]'"),
        ("score --work W --model transformers:openai/clip", "'capmix[transformers]'"),
        ("probe --work W", "'capmix[mini]'"),
        ("train --scale small --data mixed --out r", "'capmix[train]'"),
        ("train --work W --subset raw --out r", "'capmix[train]'"),
        ("eval ViT-B-32/openai --evalsets e", "'capmix[open_clip]'"),
        ("evalsets fetch --out e", "'capmix[hub]'"),
        ("view --work W", "'capmix[view]'"),
        (f"plan shards --model {BLIP2} --scorer clip-l14", "'capmix[transformers]'"),
        ("plan s3://bucket/shards", "'capmix[s3]'"),
        ("caption gs://bucket/shards --work X --source b --model field:caption", "'capmix[gcs]'"),
        ("caption hf://datasets/a/b --work X --source b --model field:caption", "'capmix[hub]'"),
        ("mix --work W --recipe raw --where language(raw_text)='en' --out e", "'capmix[language]'"),
        ("mix --work W --recipe raw --where imagenet_noun(raw_text) --out n", "nltk"),
    ],
)
def test_a_missing_extra_is_one_line_with_the_command(
    place: Path, command: str, needed: str
) -> None:
    code, _, err = run(place, command)
    assert code == 2, err
    last = err.strip().splitlines()[-1]
    assert last.startswith("capmix: ")
    assert f"pip install {needed}" in last
    assert "Traceback" not in err

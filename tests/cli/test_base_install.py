"""Without extras, each command of the README works or prints the command that installs an extra.

The packages of all extras are hidden from the import system of a process, which runs the commands
one after the other.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
from samples import write_pool

from capmix.models.registry import EXTRAS

HIDDEN = sorted({*EXTRAS, "nltk", "huggingface_hub", "requests", "braceexpand"})
RUN = f"""
import json, os, sys, tempfile
from importlib.machinery import PathFinder

class Base(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.partition(".")[0] in {HIDDEN}:
            return None
        return super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Base
from capmix.cli.main import main

answers = os.fdopen(os.dup(1), "w")
for line in sys.stdin:
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        os.dup2(out.fileno(), 1)
        os.dup2(err.fileno(), 2)
        code = main(line.split())
        sys.stdout.flush()
        sys.stderr.flush()
        found = []
        for stream in (out, err):
            stream.seek(0)
            found.append(stream.read().decode())
    print(json.dumps([code, *found]), file=answers, flush=True)
"""
BLIP2, COCA = "Salesforce/blip2-opt-2.7b", "open_clip:coca_ViT-L-14/mscoco_finetuned"


Run = Callable[[str], tuple[int, str, str]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """Run a command; return its exit code, output and messages.

    There are a pool, and a work directory with the parts that a base install can write.
    """
    place = tmp_path_factory.mktemp("base")
    write_pool(place / "shards", 1, 4)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", RUN], cwd=place, text=True, **pipes) as process:  # type: ignore[call-overload]

        def ask(command: str) -> tuple[int, str, str]:
            process.stdin.write(command + "\n")
            process.stdin.flush()
            code, out, err = json.loads(process.stdout.readline())
            return code, out, err

        for command in (
            "caption shards --work W --source given --model field:caption",
            "mix --work W --recipe raw",
        ):
            assert ask(command)[0] == 0
        yield ask
        process.stdin.close()


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
def test_what_needs_no_extra_works(run: Run, command: str, shown: str) -> None:
    code, out, err = run(command)
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
def test_a_missing_extra_is_one_line_with_the_command(run: Run, command: str, needed: str) -> None:
    code, _, err = run(command)
    assert code == 2, err
    last = err.strip().splitlines()[-1]
    assert last.startswith("capmix: ")
    assert f"pip install {needed}" in last
    assert "Traceback" not in err

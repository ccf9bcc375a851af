"""The commands that messages name for a folder are ones that the command line has."""

import pytest

from capmix.caption.fields import BY_PEOPLE
from capmix.cli.main import COMMANDS, make_app
from capmix.storage import layout
from capmix.storage.commands import command_of, how_to_write


@pytest.mark.parametrize(
    ("name", "config", "expected"),
    [
        ("captions/a b/00000", None, "capmix caption --source 'a b' --model MODEL"),
        ("captions/a", {"model": "blip2"}, "capmix caption --source a --model blip2"),
        ("captions/a", {"from": ["raw", "b"], "model": "m"},
         "capmix rewrite --source a --from raw,b --model m"),
        ("captions/a", {"from": ["raw", "b"], "model": "m", "preset": "fuse", "prompt": ["x {raw}"],
                        "missing": "pass", "target": None},
         "capmix rewrite --source a --from raw,b --model m --preset fuse --missing pass"),
        ("captions/a", {"from": ["raw"], "model": "m", "prompt": ["a {raw}", "b\n{raw}", "c" * 81],
                        "preset": None, "missing": "skip", "target": "en"},
         "capmix rewrite --source a --from raw --model m --prompt 'a {raw}' --prompt ... "
         "--prompt ... --target en"),
        ("captions/a", {"from": ["raw"], "model": "m", "prompt": ["a {raw}"],
                        "preset": "translate", "target": "en"},
         "capmix rewrite --source a --from raw --model m --preset translate --prompt 'a {raw}' "
         "--target en"),
        ("captions/a", {"model": "o/m", "engine": "vllm"},
         "capmix caption --source a --model vllm:o/m"),
        ("captions/a", {"model": "m", "engine": "vllm", "weights": "0"},
         "capmix caption --source a --model vllm:MODEL"),
        ("captions/a", {"model": "m", "weights": "0"}, "capmix caption --source a --model MODEL"),
        ("captions/a", {"model": "mini", "weights": "0"}, "capmix caption --source a --model mini"),
        ("captions/a", {"model": "run:r", "weights": "0"},
         "capmix caption --source a --model MODEL"),
        ("captions/edited", {"model": BY_PEOPLE, "source": "edited"}, "capmix view"),
        ("columns/edited_review", {"model": BY_PEOPLE}, "capmix view"),
        ("captions/a", {"import": ["c.csv"]}, "capmix import captions FILES --source a"),
        ("scores/clip/raw/x/0", {"model": "clip-l14"},
         "capmix score --sources raw --model clip-l14"),
        ("scores/clip-masked/raw", {"model": "a/b", "weights": "0", "mask": "my text"},
         "capmix score --sources raw --model a/b --mask 'my text'"),
        ("scores/clip/raw", {"import": ["c.csv"]},
         "capmix import scores FILES --source raw --scorer clip"),
        ("columns/head/0", {"method": "head"}, "capmix annotate --method head --name head"),
        ("columns/image_phash/0", None, "capmix annotate --method image --name image"),
        ("matches/c/0", None, "capmix annotate --method concepts --name c"),
        ("metadata/c/entries", None, "capmix annotate --method concepts --name c"),
        ("subsets/s", {"recipe": {"name": "raw-top30"}}, "capmix mix --recipe RECIPE --out s"),
        ("subsets/s", {"recipe": {"name": "raw"}}, "capmix mix --recipe raw --out s"),
        ("subsets/s", {"recipe": {"name": "../recipes/raw"}},
         "capmix mix --recipe RECIPE --out s"),
        ("measures/x", None, "capmix measure"),
        ("samples/0", None, ""),
        ("unknown/x", None, ""),
    ],
)  # fmt: skip
def test_the_command_of_a_part(name: str, config: dict[str, object] | None, expected: str) -> None:
    assert command_of(name, config) == expected
    if expected:
        verb, *options = expected.split(" ")[1:]
        assert verb in {one.name for one in COMMANDS}
        arguments = make_app()[verb].assemble_argument_collection()
        known = {option for one in arguments for option in one.names}
        assert known.issuperset(one for one in options if one.startswith("--"))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("captions/a/0", "`capmix caption --source a --model MODEL`"),
        ("samples/0", "any command on the pool"),
        ("fields/0", "`capmix mix` with a recipe that names a field"),
        ("unknown/x", "the command that writes it"),
    ],
)
def test_only_the_command_is_quoted(name: str, expected: str) -> None:
    assert how_to_write(name) == expected


def test_every_folder_of_parts_has_a_command() -> None:
    skipped = {layout.RUNNING, layout.REPORT, layout.RESULTS}
    for top in {*layout.NOT_OF_SAMPLES, layout.SAMPLES, layout.EMBEDDINGS} - skipped:
        assert how_to_write(f"{top}/name/part").startswith(("`capmix ", "any command"))

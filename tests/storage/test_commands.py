"""The commands that messages name for a folder are ones that the command line has."""

import pytest

from capmix.cli.main import COMMANDS, make_app
from capmix.storage import layout
from capmix.storage.commands import command_of


@pytest.mark.parametrize(
    ("name", "config", "expected"),
    [
        ("captions/a b/00000", None, "capmix caption --source 'a b' --model MODEL"),
        ("captions/a", {"model": "blip2"}, "capmix caption --source a --model blip2"),
        ("captions/a", {"from": ["raw", "b"], "model": "m"},
         "capmix rewrite --source a --from raw,b --model m"),
        ("captions/a", {"import": ["c.csv"]}, "capmix import captions FILES --source a"),
        ("scores/clip/raw/x/0", {"model": "clip-l14"},
         "capmix score --sources raw --model clip-l14"),
        ("scores/clip/raw", {"import": ["c.csv"]},
         "capmix import scores FILES --source raw --scorer clip"),
        ("columns/head/0", {"method": "head"}, "capmix annotate --method head --name head"),
        ("columns/image_phash/0", None, "capmix annotate --method image --name image"),
        ("matches/c/0", None, "capmix annotate --method concepts --name c"),
        ("metadata/c/entries", None, "capmix annotate --method concepts --name c"),
        ("subsets/s", {"recipe": {"name": "raw-top30"}}, "capmix mix --recipe RECIPE --out s"),
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


def test_every_folder_of_parts_has_a_command() -> None:
    skipped = {layout.RUNNING, layout.REPORT, layout.RESULTS}
    for top in {*layout.NOT_OF_SAMPLES, layout.SAMPLES, layout.EMBEDDINGS} - skipped:
        assert command_of(f"{top}/name/part").startswith(("capmix ", "any command"))

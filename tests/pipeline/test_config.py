from pathlib import Path

import pytest

from capmix.errors import UserError
from capmix.pipeline.config import load_pipeline

HEAD = "pool: p\nwork: w\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("captoin: {}\n", "unknown stage 'captoin'; did you mean 'caption'?"),
        ("caption: {mini: {top_kk: 3}}\n", "caption.mini.top_kk: unknown setting"),
        ("caption: {mini: {top_k: 0}}\n", "caption.mini.top_k"),
        ("export: {}\n", "export needs the stage 'mix'"),
        ("mix: {recipes: []}\n", "mix.recipes"),
        ("mix: {recipes: [nope]}\n", "no recipe 'nope'"),
        ("mix: {recipes: [{recipe: raw-top, fraction: 30%}]}\n", "fraction '30%'"),
        ("mix: {recipes: [{recipe: raw-top, fraction: 0}]}\n", "fraction 0"),
        ("mix: {recipes: [{recipe: raw-top, fraction: 1.5}]}\n", "fraction 1.5"),
        ("mix: {recipes: [raw, raw]}\n", "two recipes produce subset 'raw'"),
        ("mix: {recipes: [raw]}\ntrain: {scale: tiny, loss: x}\n", "train.loss"),
        ("train: {scale: tiny}\n", "train needs the stage 'mix'"),
        ("mix: {recipes: [raw]}\ntrain: {scale: huge}\n", "--scale huge: expected one of"),
        ("mix: {recipes: [raw]}\ntrain: {seed: 3}\n", "use `seeds`, a list"),
        ("mix: {recipes: [raw]}\ntrain: {devices: 3}\n", "is not divisible by 3 devices"),
        ("evaluate: {tasks: imagenet1k}\n", "evaluate needs the stage 'train'"),
        ("score: [\n", "invalid YAML"),
    ],
)
def test_a_faulty_file_is_told_before_anything_runs(
    tmp_path: Path, text: str, message: str
) -> None:
    file = tmp_path / "p.yaml"
    file.write_text(HEAD + text)
    with pytest.raises(UserError) as error:
        load_pipeline(str(file))
    assert message in str(error.value)


def test_the_shipped_files_are_valid() -> None:
    root = Path(__file__).parents[2]
    files = [path for path in root.glob("examples/*.yaml") if path.name != "recipe.yaml"]
    files.append(root / "src/capmix/embedded/demo.yaml")
    assert len(files) == 7
    for file in files:
        load_pipeline(str(file))

"""Messages of mix about scores: the chosen scorer, missing scores, and too few scores."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import get_args

import pytest
from samples import write_pool

from capmix.annotate.settings import DEFAULT_NAMES, Method
from capmix.cli.main import main
from capmix.errors import UserError
from capmix.mix.advice import about_annotation
from capmix.workspace import Workspace, open_workspace

UIDS = [f"{number:032x}" for number in (0, 1, 2, 3, 100, 101, 102, 103)]


@pytest.fixture(scope="module")
def indexed(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    folder = tmp_path_factory.mktemp("advice")
    work = open_workspace(str(write_pool(folder / "pool", 2, 4)), str(folder / "work"))
    work.index()
    captions = "".join(f"{uid},caption {uid}\n" for uid in UIDS)
    (folder / "captions.csv").write_text(f"uid,text\n{captions}")
    work.import_captions(folder / "captions.csv", source="blip2")
    return work


@pytest.fixture
def work(indexed: Workspace, tmp_path: Path) -> Workspace:
    """Return a separate copy of the work directory for the same pool."""
    shutil.copytree(indexed.store.root, tmp_path / "work")
    return open_workspace(indexed.pool.location, str(tmp_path / "work"))


def score(work: Workspace, scorer: str, source: str, values: Sequence[float]) -> None:
    """Import scores of the first samples; for scorers named `model...`, as if capmix had run
    them."""
    file = Path(work.store.root) / "scores.csv"
    rows = zip(UIDS, values, strict=False)
    file.write_text("uid,score\n" + "".join(f"{uid},{value}\n" for uid, value in rows))
    work.import_scores(file, source=source, scorer=scorer)
    if scorer.startswith("model"):
        for shard in work.pool.shards:
            part = f"scores/{scorer}/{source}/{shard.name}"
            marker = work.store.read_marker(part)
            assert marker is not None
            del marker.config["import"]
            work.store.write_marker(part, marker)


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("raw-top", "recipe raw-top30: no scores for raw: run `capmix score --sources raw`"),
        ("raw-top+synthetic-above", "no scores for raw, blip2: run `.* --sources raw,blip2`"),
    ],
)
def test_scores_that_are_not_there_are_answered_with_the_command(
    indexed: Workspace, recipe: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        more = {"synthetic": "blip2"} if "synthetic" in recipe else {}
        indexed.mix(recipe, parameters={"fraction": 0.3} | more)


@pytest.mark.parametrize(
    ("recipe", "command"),
    [
        ("sieve", "capmix annotate --method agreement"),
        ("metaclip", "capmix annotate --method concepts"),
        ("near-duplicates", "capmix annotate --method image"),
        ("semdedup", "capmix annotate --method semdedup"),
        ("t-mars", "capmix score --mask NAME"),
    ],
)
def test_a_missing_annotation_is_answered_with_its_command(
    indexed: Workspace, recipe: str, command: str
) -> None:
    with pytest.raises(UserError, match=f"no column .*; run `{command}` first"):
        indexed.mix(recipe)


def test_values_of_a_sweep_may_have_spaces_after_commas(work: Workspace) -> None:
    asked = ["mix", "--work", work.store.root, "--recipe", "synthetic"]
    assert main([*asked, "--synthetic", "blip2, raw"]) == 0
    assert len(work.subsets()) == 2
    assert main([*asked, "--synthetic", "blip2,", "--out", "one"]) == 0
    assert len(work.subset("one")) == 8


def test_every_method_has_a_hint() -> None:
    for method in get_args(Method):
        name = DEFAULT_NAMES.get(method, method)
        assert f"--method {method}`" in about_annotation(f"{name}_value")
    assert about_annotation("mine_value") == ""


def test_the_best_of_captions_without_scores_is_answered_the_same(indexed: Workspace) -> None:
    with pytest.raises(UserError, match="^no scores for blip2: run `capmix score --sources blip2`"):
        indexed.table(columns=["blip2_best_text"])
    with pytest.raises(UserError, match="^--scorer clip: no scores in .*: run `capmix score`"):
        indexed.catalog.scorer("clip")


def test_a_source_without_captions_is_answered_with_the_command(indexed: Workspace) -> None:
    with pytest.raises(UserError, match="blip2; run `capmix caption --source llava` .or `capmix"):
        indexed.mix("synthetic", synthetic="llava")


HALF, ALL = [0.5] * 4, [0.25] * 8


@pytest.mark.parametrize(
    ("scores", "taken"),
    [
        ({"model": ["raw", "blip2"], "theirs": ["raw", "blip2"]}, "model"),
        ({"model": ["raw"], "theirs": ["raw", "blip2"]}, "theirs"),
        ({"theirs": ["raw", "blip2"], "others": ["blip2"]}, "theirs"),
        ({"theirs": ["raw"], "others": ["blip2"]}, None),
        ({"model": ["raw", "blip2"], "model-2": ["raw", "blip2"]}, None),
        ({"theirs": ["raw", "blip2"], "others": ["raw", "blip2"]}, None),
    ],
)
def test_scores_of_a_recipe_are_all_of_one_scorer(
    work: Workspace,
    scores: Mapping[str, Sequence[str]],
    taken: str | None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    for number, (scorer, sources) in enumerate(scores.items()):
        for source in sources:
            score(work, scorer, source, [0.1 * (number + 1)] * 8)
    caplog.set_level("INFO")
    recipe = {"recipe": "raw-top+synthetic-above", "synthetic": "blip2", "fraction": 0.3}
    if taken is None:
        with pytest.raises(UserError, match="several scorers have scored .*choose one with"):
            work.mix(**recipe)
        taken = next(iter(scores))
        if len(scores[taken]) < 2:
            return
        rows = work.mix(**recipe, scorer=taken).table()
    else:
        rows = work.mix(**recipe).table()
        assert f"using the scores of {taken}; to use" in caplog.text
    value = 0.1 * (list(scores).index(taken) + 1)
    assert rows["score"].to_pylist() == pytest.approx([value] * 8)


def test_a_threshold_of_too_few_scores_is_a_warning_with_numbers(
    work: Workspace, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    score(work, "clip", "raw", [0.5, 0.6])
    words = "threshold(raw_score, 0.5) is undefined: the fraction requests 4 of 8 samples, but 2 "
    assert work.mix("raw-top", fraction=0.5, out="s").summary.short == {
        "threshold(raw_score, 0.5)": [4, 2]
    }
    assert f"recipe s: {words}have a value; each of them passes" in caplog.text
    assert any(words in line for line in work.subset("s").summary.lines())
    asked = ["mix", "--work", work.store.root, "--recipe", "raw-top", "--fraction", "0.5"]
    for _ in range(2):  # the second time, the subset exists
        assert main([*asked, "--strict", "--out", "t"]) == 2
        assert words in capsys.readouterr().err
    assert work.subsets() == ["s"]
    assert main([*asked, "--strict", "--out", "s"]) == 2


@pytest.mark.parametrize("fraction", [0.25, 1.0])
def test_a_fraction_that_has_its_values_is_no_warning(
    work: Workspace, fraction: float, caplog: pytest.LogCaptureFixture
) -> None:
    score(work, "clip", "raw", [0.5, 0.6] if fraction < 1 else ALL)
    assert work.mix("raw-top", fraction=fraction, strict=True).summary.short == {}
    assert "undefined" not in caplog.text


def test_a_missing_part_is_answered_with_its_command(work: Workspace) -> None:
    score(work, "clip", "raw", ALL)
    work.store.remove_marker("scores/clip/raw/00001")
    with pytest.raises(
        UserError,
        match=r"1 of 2 missing.*Run `capmix import scores FILES --source raw --scorer clip` first",
    ):
        work.mix("raw-top", fraction=0.3)

import subprocess
from pathlib import Path

import pytest
from parts import SCORER, HandMade, Made, fresh_folder
from samples import write_pool

from capmix.cli.main import main
from capmix.errors import UserError
from capmix.measure import nouns
from capmix.measure.measure import measure
from capmix.measure.nouns import load_tagger
from capmix.measure.settings import MeasureSettings
from capmix.workspace import open_workspace

NO_TOPICS = MeasureSettings(topics=0)


def test_nouns_of_hand_picked_captions() -> None:
    name, tagger = load_tagger()
    assert name.startswith(("HanTa", "spaCy"))
    texts = ["the two women are standing near a parked car", "a brown dog runs on the beach", ""]
    assert tagger(texts) == [(9, ["woman", "car"]), (7, ["dog", "beach"]), (0, [])]


def test_a_word_of_400_letters_takes_no_seconds() -> None:
    _, tagger = load_tagger()
    assert tagger([f"a dog {'x' * 400} " * 300])[0][1][0] == "dog"


def test_a_pickle_that_asks_for_more_is_refused() -> None:
    import io
    import pickle

    data = io.BytesIO(pickle.dumps(subprocess.Popen))
    with pytest.raises(UserError, match="uses subprocess"):
        nouns._unpickler()(data).load()


def test_measures_of_single_captions() -> None:
    made = [
        Made(f"{i:032x}", text, 0.1, {"mini": captions}, {"mini": [0.2] * len(captions)})
        for i, (text, captions) in enumerate(
            [
                ("a dog on a beach", ["a red car", "a blue car"]),
                ("a dog on a beach", ["two dogs", "two dogs"]),
                (None, ["a dog on a beach", "cat"]),
            ]
        )
    ]
    here = HandMade(fresh_folder(), {"00000": made})
    found = measure(here.store, here.pool, SCORER, ["raw", "mini"], ["raw", "mini"], NO_TOPICS)  # type: ignore[arg-type]
    raw, mini = (found["sampled"]["sources"][name] for name in ("raw", "mini"))
    assert (raw["texts"], raw["nouns"], raw["noun_share"], raw["nouns_a_text"]) == (2, 2, 0.4, 2)
    assert [list(one) for one in raw["openings"]] == [["a dog on a", 2]]
    assert raw["several"] is None
    assert mini["texts"] == 3
    assert list(mini["nouns_curve"][-1]) == [3, 3]  # car, dog, beach
    several = mini["several"]
    assert several["images"] == 3
    assert several["captions"] == 2
    assert several["unique"] == pytest.approx((1 + 0.5 + 1) / 3)
    # {a red car blue} of 6 words, {two dogs} of 4, {a dog on beach cat} of 6
    assert several["div_1"] == pytest.approx((4 / 6 + 2 / 4 + 5 / 6) / 3)
    # a red, red car, a blue, blue car; two dogs; a dog, dog on, on a, a beach
    assert several["div_2"] == pytest.approx((4 / 6 + 1 / 4 + 4 / 6) / 3)
    (pair,) = found["sampled"]["overlap"]
    assert pair["samples"] == 2
    assert pair["words"] == pytest.approx((1 / 6 + 0) / 2)  # a, of a dog on beach red car


def test_texts_without_any_score_are_measured(tmp_path: Path) -> None:
    pool = write_pool(tmp_path / "pool", shards=1, samples=4)
    work = open_workspace(str(pool), str(tmp_path / "w"))
    found = work.measure(NO_TOPICS)
    assert found["population"]["sources"]["raw"]["noise"] is None
    assert found["population"]["steps"] is None


def test_flags_are_counted_and_recipes_can_use_them(tmp_path: Path) -> None:
    """One of four captions repeats itself; the recipe excludes it."""
    pool = write_pool(tmp_path / "pool", shards=1, samples=4)
    texts = ["a dog", "ray ban ray ban ray ban", "a cat", "the sea"]
    (tmp_path / "c.csv").write_text(
        "uid,text\n" + "\n".join(f"{i:032x},{text}" for i, text in enumerate(texts))
    )
    work = open_workspace(str(pool), str(tmp_path / "w"))
    work.import_captions(
        [str(tmp_path / "c.csv")], source="blip2", uid_column="uid", text_column="text"
    )
    work.score(model="mini")
    found = work.measure(NO_TOPICS)["population"]["sources"]
    assert found["blip2"]["flags"] == {"loop": 1}
    assert found["blip2"]["truncated"] == 0
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        "name: clean\nabout: x\nclauses:\n"
        "  - {source: blip2, where: \"not list_contains(blip2_flags, 'loop')\"}\n"
    )
    assert work.mix(str(recipe)).summary.kept == 3


def test_the_command_prints_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pool = [str(write_pool(tmp_path / "pool", shards=1, samples=30)), "--work", str(tmp_path / "w")]
    assert main(["caption", *pool, "--source", "mini", "--model", "mini"]) == 0
    assert main(["score", *pool, "--sources", "raw,mini", "--model", "mini"]) == 0
    asked = ["--references", "source:mini", "--no-java", "--topics", "3", "--map-points", "10"]
    asked += ["--model", "mini"]
    assert main(["measure", *pool, *asked]) == 0
    printed = capsys.readouterr().out
    for part in ("distinct-3", "raw scores higher than mini", "CIDEr", "number of 3 topics"):
        assert part in printed
    assert main(["measure", *pool, "--sources", "raw,blip"]) == 2
    assert "no captions of source 'blip'; sources: raw, mini" in capsys.readouterr().err


def test_the_languages_of_each_source_are_printed() -> None:
    from capmix.measure.lines import measure_lines

    raw = ["a red apple on the old wooden table", "una mela rossa sul vecchio tavolo di legno"]
    made = [
        Made(f"{i:032x}", text, 0.1, {"mini": ["a dog runs on the beach"]}, {"mini": [0.2]})
        for i, text in enumerate([raw[0], raw[0], raw[0], raw[1]])
    ]
    here = HandMade(fresh_folder(), {"00000": made})
    found = measure(here.store, here.pool, SCORER, ["raw", "mini"], ["raw", "mini"], NO_TOPICS)  # type: ignore[arg-type]
    lines = [line for line in measure_lines(found) if line.startswith("languages of")]
    assert lines == ["languages of mini: en 100.0%", "languages of raw: en 75.0%, it 25.0%"]

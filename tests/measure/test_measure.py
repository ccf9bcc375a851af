from pathlib import Path

from samples import write_pool

from capmix import jobs
from capmix.measure.measure import text_measures


def test_a_hand_worked_case() -> None:
    texts = ["A red apple, food"] * 5 + ["the red apple falls", "apple"]
    found = text_measures(texts)
    assert found["texts"] == 7
    assert found["unique_texts"] == 3
    assert found["share_repeated_5"] == 5 / 7
    assert found["mean_words"] == (5 * 4 + 4 + 1) / 7
    assert found["vocabulary"] == 6  # a red apple food the falls
    # a red apple, red apple food, the red apple, red apple falls
    assert found["unique_trigrams"] == 4


def test_no_texts_give_zeros() -> None:
    assert set(text_measures([]).values()) == {0}


def test_flags_are_counted_and_recipes_can_use_them(tmp_path: Path) -> None:
    """Four captions, of which one loops; the recipe leaves it out."""
    pool = write_pool(tmp_path / "pool", shards=1, samples=4)
    texts = ["a dog", "ray ban ray ban ray ban", "a cat", "the sea"]
    (tmp_path / "c.csv").write_text(
        "uid,text\n" + "\n".join(f"{i:032x},{text}" for i, text in enumerate(texts))
    )
    work = jobs.open_work(str(pool), str(tmp_path / "w"))
    jobs.import_captions(work, [str(tmp_path / "c.csv")], "blip2", "uid", "text")
    jobs.score(work)
    found = jobs.measure(work)
    assert found["blip2"]["flags"] == {"loop": 1}
    assert found["blip2"]["truncated"] == 0
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        "name: clean\nabout: x\nclauses:\n"
        "  - {source: blip2, where: \"not list_contains(blip2_flags, 'loop')\"}\n"
    )
    assert jobs.mix(work, str(recipe)).kept == 3

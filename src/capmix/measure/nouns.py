"""Nouns of English texts, found by a part-of-speech tagger.

The tagger is spaCy with its model en_core_web_sm if both are installed, otherwise HanTa (Wartena
2019). HanTa's package includes its model, is licensed under LGPL-3, and tags about 1,000 captions
per second and core.
"""

import re
from collections.abc import Callable, Iterable
from importlib import resources
from importlib.util import find_spec
from typing import Any

from capmix.errors import UserError

MODEL = "en_core_web_sm"
TOKEN = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*|[^\w\s]")
HANTA_NOUNS = {"NN0", "NN1", "NN2", "NP0"}  # C5 tags: neutral, singular, plural, proper
SPACY_NOUNS = {"NOUN", "PROPN"}
LONGEST_TOKEN, MOST_TOKENS = 40, 256  # HanTa needs seconds for a token of 400 letters

Tagger = Callable[[Iterable[str]], list[tuple[int, list[str]]]]


def load_tagger() -> tuple[str, Tagger]:
    """Return the name of the tagger and the tagger: a function that returns, for each text, its
    number of words and its nouns as lower-case lemmas. Raises UserError if no tagger is
    installed."""
    if find_spec("spacy") and find_spec(MODEL):
        return _spacy()
    if find_spec("HanTa"):
        return _hanta()
    raise UserError("nouns need a tagger: pip install 'capmix[measure]'")


def _spacy() -> tuple[str, Tagger]:
    import spacy  # type: ignore[import-not-found,unused-ignore]

    model = spacy.load(MODEL, exclude=["parser", "ner"])

    def tag(texts: Iterable[str]) -> list[tuple[int, list[str]]]:
        found = []
        for document in model.pipe(text[:10_000] for text in texts):
            words = [token for token in document if not token.is_punct and not token.is_space]
            nouns = [t.lemma_.lower() for t in words if t.pos_ in SPACY_NOUNS]
            found.append((len(words), nouns))
        return found

    return f"spaCy {spacy.__version__} {MODEL} {model.meta['version']}", tag


def _hanta() -> tuple[str, Tagger]:
    import gzip
    from importlib.metadata import version

    from HanTa.HanoverTagger import HanoverTagger

    with gzip.open(str(resources.files("HanTa") / "morphmodel_en.pgz")) as stream:
        model = _unpickler()(stream).load()
    tagger = HanoverTagger(None, model)
    tagger.strict = False

    def tag(texts: Iterable[str]) -> list[tuple[int, list[str]]]:
        found = []
        for text in texts:
            tokens = [token for token in TOKEN.findall(text) if len(token) <= LONGEST_TOKEN]
            tokens = tokens[:MOST_TOKENS]
            words = sum(token[0].isalnum() for token in tokens)
            tagged = tagger.tag_sent(tokens) if tokens else []
            found.append((words, [t[1].lower() for t in tagged if t[2] in HANTA_NOUNS]))
        return found

    return f"HanTa {version('HanTa')} morphmodel_en", tag


def _unpickler() -> Any:
    """Return an unpickler for HanTa's model that, for safety, only builds numbers."""
    import pickle

    class NumbersAlone(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            if (module, name) in {
                ("numpy", "dtype"),
                ("numpy._core.multiarray", "scalar"),
                ("numpy.core.multiarray", "scalar"),
            }:
                return super().find_class(module, name)
            raise UserError(f"HanTa's model uses {module}.{name}: install HanTa 1.2")

    return NumbersAlone

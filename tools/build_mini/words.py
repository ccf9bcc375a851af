"""Words for training: clean captions from titles and keywords, and a text corpus."""

import re
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

from sources import Drawing, wordnet_nouns
from timm.data import ImageNetInfo

BROKEN = re.compile(
    r"HASH|ARRAY\(|[^\x00-\x7f]|https?:|@|architetto|rollandin|francesco", re.IGNORECASE
)
FUNCTION_WORDS = """
a an the of in on with and or to for is it its this that at by from as be are was kind type made
used his her their into over under up out off some very
"""
STOP_WORDS = frozenset(FUNCTION_WORDS.split())
BOILERPLATE = re.compile(
    r"clip\s?art|openclipart|part of the|theme|icon|submission|sibmission|public domain|unsorted"
    r"|nicu|buculei|collection|\bset\b|svg|png|inkscape|\bauthor|\bcontest|flag of the week"
    r"|etiquette|aiga|signs?\b.*road|various|symbols?$|shape|\bsimple\b$|\bimage|picture",
    re.IGNORECASE,
)
TOO_OFTEN = 5


def clean(text: str) -> str:
    """Return a lower-case caption without trailing numbers; "" if it is broken or boilerplate."""
    if BROKEN.search(text) or BOILERPLATE.search(text):
        return ""
    words = re.sub(r"[_/\\.,;:()\[\]\"]+|\s-\s", " ", text.lower()).split()
    words = [re.sub(r"(?<=[a-z])\d+$", "", word) for word in words]
    words = [word for word in words if re.fullmatch(r"[a-z][a-z'-]*", word) and len(word) < 20]
    joined = " ".join(words)
    return joined if 3 <= len(joined) <= 60 and len(words) <= 8 else ""


def captions_of(drawings: list[Drawing]) -> list[list[str]]:
    """Return clean captions of each drawing: its title unless it is generic, then its keywords."""
    titles = Counter(drawing.title.strip().lower() for drawing in drawings)
    out = []
    for drawing in drawings:
        often = titles[drawing.title.strip().lower()] >= TOO_OFTEN
        title = "" if often and drawing.source == "openclipart" else clean(drawing.title)
        words = [word for word in map(clean, drawing.keywords) if word]
        out.append(list(dict.fromkeys(text for text in [title, *words] if text)))
    return out


def content_words(text: str) -> set[str]:
    """Return lower-case words without stop words, with plurals reduced to the singular."""
    words = (word for word in re.findall(r"[a-z]+", text.lower()) if len(word) > 1)
    kept = (word for word in words if word not in STOP_WORDS)
    return {word[:-1] if re.fullmatch(r"\w{3,}[^s]s", word) else word for word in kept}


def english(share: Path) -> Callable[[str], bool]:
    """Return a predicate: whether all words of a text are WordNet nouns or occur in its glosses."""
    known: set[str] = set()
    for lemmas, gloss, _, _ in wordnet_nouns(share):
        known |= content_words(gloss)
        for lemma in lemmas:
            known |= content_words(lemma)
    return lambda text: content_words(text) <= known


def imagenet_names() -> list[str]:
    """Return names of the 1,000 ImageNet classes with synonyms, in the classifier's order."""
    info = ImageNetInfo("imagenet-1k")
    return [info.index_to_description(i, detailed=False) for i in range(1000)]


def corpus(share: Path, captions: Iterable[list[str]]) -> list[str]:
    """Return texts for distillation: noun lemmas and glosses, class names, training captions."""
    texts: list[str] = []
    for number, (lemmas, gloss, _, _) in enumerate(wordnet_nouns(share)):
        texts.append(lemmas[0])
        if number % 2 == 0:
            texts += [gloss.split(";")[0][:120], f"a picture of a {lemmas[-1]}."]
    texts += imagenet_names()
    for row in captions:
        texts += row
        texts.append(", ".join(row))
        texts += [f"a {row[0]}.", f"a picture of a {row[0]}"] if row else []
    return sorted({text for text in texts if text})

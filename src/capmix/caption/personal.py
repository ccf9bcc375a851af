"""Find e-mail addresses and phone numbers in texts.

Captions have the flags `email` and `phone`, recipes the functions has_email and has_phone.

The patterns are bounded at every position, so that the time grows with the length of the text only.
They prefer to miss a number over flagging dates, prices, sizes and product codes.

A phone number is one of these, with single separators between its digits:

- international: + or 00, and 8 to 15 digits, such as +44 20 7946 0958; after 00 and a country code,
  a separator
- North American: ten digits as (212) 555-0123, 212-555-0123 or 1.212.555.0123
- national with a leading 0: 9 to 12 digits in groups of 2 or more, such as 01 23 45 67 89
- after a word such as "tel", "call" or "fax": 7 to 15 digits

An e-mail address has a letter, digit or one of _%+- before the @, and a domain with a final part of
2 to 24 letters that is not the suffix of an image file (icon@2x.png).
"""

import re
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

EMAIL = re.compile(
    r"[\w%+-]@(?=\w)(?:[\w-]{1,63}\.){1,8}"
    r"(?!(?:png|jpe?g|gif|svg|webp|avif|bmp|tiff?|pdf)\b)[^\W\d_]{2,24}(?![\w@])",
    re.IGNORECASE,
)
GAP = r"[ .\-/\u00a0\u2010-\u2013]"
DATE = r"(?!\d{1,2}[./-]\d{1,2}[./-](?:19|20)?\d{2}(?!\d))"
LABELS = (
    "tel|tele(?:phone|fono|fon)|tel\u00e9fono|t\u00e9l(?:\u00e9phone)?|phone|ph|mobile|mob|cell|call"
    "|call us|dial|fax|whats ?app|sms|hotline|\u0442\u0435\u043b|\u7535\u8bdd|\u96fb\u8a71"
)
PHONE = re.compile(
    rf"(?<![\w.+])(?:\+|00(?=[1-9][0-9]{{0,2}}{GAP}))(?=[1-9]){DATE}(?:{GAP}?(?:\(0\){GAP}?)?\(?[0-9]\)?){{8,15}}(?![\w])"
    rf"|(?<![\w.$\u20ac\u00a3+-])(?:1{GAP})?(?:\([2-9][0-9]{{2}}\){GAP}?|[2-9][0-9]{{2}}[.-])"
    r"[2-9][0-9]{2}[ .-][0-9]{4}(?![\w-]|[.,][0-9])"
    rf"|(?<![\w.,$\u20ac\u00a3+:/-]){DATE}\(?(?=0[1-9])(?=[0-9]{{2,5}}\)?{GAP})"
    rf"(?=(?:{GAP}?[0-9()]){{9,14}}(?![\w:%-]))[0-9]{{2,5}}\)?(?:{GAP}[0-9]{{2,8}}){{1,4}}"
    r"(?![\w:%-]|[.,/][0-9])"
    rf"|(?<!\w)(?:{LABELS})[ .:#=\u00a0-]{{1,3}}{DATE}\+?(?:{GAP}?\(?[0-9]\)?){{7,15}}(?![\w])",
    re.IGNORECASE,
)
# What a text with an address or a number contains; Arrow searches a column for it.
EMAIL_HINT = "@"
PHONE_HINT = r"[0-9](?:[^0-9A-Za-z]{0,5}[0-9]){6}"
SEVEN_DIGITS = re.compile(PHONE_HINT)


def has_email(text: str) -> bool:
    """Return whether a text contains an e-mail address."""
    return EMAIL_HINT in text and bool(EMAIL.search(text))


def has_phone(text: str) -> bool:
    """Return whether a text contains a phone number."""
    return bool(SEVEN_DIGITS.search(text) and PHONE.search(text))  # most texts have few digits


def emails(texts: pa.Array | pa.ChunkedArray) -> pa.Array:
    """Return `has_email(text)` for each text of a column; nulls stay null."""
    return _where(pc.match_substring(texts, EMAIL_HINT), texts, EMAIL)


def phones(texts: pa.Array | pa.ChunkedArray) -> pa.Array:
    """Return `has_phone(text)` for each text of a column; nulls stay null."""
    return _where(pc.match_substring_regex(texts, PHONE_HINT), texts, PHONE)


def _where(may: Any, texts: pa.Array | pa.ChunkedArray, pattern: re.Pattern[str]) -> pa.Array:
    """Return whether a text has `pattern`; it is searched only where `may` is true."""
    found = may.to_pylist()
    suspects = texts.filter(pc.fill_null(may, False)).to_pylist()
    answers = iter([pattern.search(text) is not None for text in suspects])
    return pa.array([next(answers) if one else one for one in found], pa.bool_())

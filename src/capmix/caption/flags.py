"""Flag faulty captions. Flags are a separate column; captions are never edited or dropped."""

import re
from functools import cache
from typing import Any

from capmix.caption.personal import has_email, has_phone
from capmix.errors import UserError

WORD = re.compile(r"\w+")
BOILERPLATE = re.compile(
    r"\b(stock (photo|image|illustration|vector)s?|royalty[- ]free|getty ?images|shutterstock|"
    r"istock|alamy|watermark|no image available|click here|all rights reserved|wallpaper)\b",
    re.IGNORECASE,
)
REFUSAL = re.compile(
    r"\b(i('m| am) (sorry|unable|not able)|i (can('?t|not)|could ?n[o']t|won't)|as an ai|"
    r"language model|unable to (see|view|describe|process|help)|can('?t|not) (assist|help))\b",
    re.IGNORECASE,
)
# A text that contains none of these in lower case cannot match. Most texts need no other check.
BOILERPLATE_HINTS = (
    "stock",
    "royal",
    "getty",
    "alamy",
    "mark",
    "no image",
    "click",
    "right",
    "wall",
)
REFUSAL_HINTS = ("sorry", "unable", "not", "can", "won't", "couldn't", "as an ai", "language model")
FLAGS = (
    "empty", "loop", "prompt_echo", "boilerplate", "refusal", "unfinished", "wrong_language",
    "email", "phone",
)  # fmt: skip
LONGEST_LOOP = 6  # words
MIN_PROBABILITY = 0.01  # of the expected language: low, because single words are often misjudged


def caption_flags(
    text: str, finish: str, prompt: str | None = None, language: str | None = None
) -> list[str]:
    """Return the flags of one caption, in the order of FLAGS.

    - empty: no text
    - loop: one to six words repeated three times in a row, as reported in LAVIS issue 713
    - prompt_echo: the text starts with the prompt
    - boilerplate: a stock-photo phrase
    - refusal: the model refuses to describe the image
    - unfinished: truncated at the maximum length
    - wrong_language: only if `language` (ISO 639-1) is set; py3langid assigns it a probability
      below MIN_PROBABILITY
    - email, phone: an e-mail address or a phone number (see personal.py)

    Raises UserError if `language` is set and py3langid is not installed.
    """
    lowered = text.lower().replace("\u2019", "'")
    found = {
        "empty": not text.strip(),
        "loop": _has_loop(WORD.findall(lowered)),
        "prompt_echo": bool(prompt and text.lower().startswith(prompt.strip().lower())),
        "boilerplate": _matches(BOILERPLATE, BOILERPLATE_HINTS, lowered),
        "refusal": _matches(REFUSAL, REFUSAL_HINTS, lowered),
        "unfinished": finish == "length",
        "wrong_language": bool(language and _is_other_language(text, language)),
        "email": has_email(text),
        "phone": has_phone(text),
    }
    return [name for name in FLAGS if found[name]]


def _matches(pattern: re.Pattern[str], hints: tuple[str, ...], lowered: str) -> bool:
    for hint in hints:  # half the time of any() over a generator
        if hint in lowered:
            return bool(pattern.search(lowered))
    return False


def _has_loop(words: list[str]) -> bool:
    repeated = len(words) - len(set(words))  # a loop of n words has 2 n repeats
    for length in range(1, min(LONGEST_LOOP, repeated // 2) + 1):
        same = 0
        for word, later in zip(words, words[length:], strict=False):
            same = same + 1 if word == later else 0
            if same == 2 * length:
                return True
    return False


def check_language(language: str) -> None:
    """Raise UserError unless py3langid supports `language`."""
    known = sorted(_identifier().labels)
    if language not in known:
        raise UserError(f"--language {language}: expected one of {', '.join(known)}")


def _is_other_language(text: str, wanted: str) -> bool:
    if not any(letter.isalpha() for letter in text):
        return False
    return bool(dict(_identifier().rank(text.lower()))[wanted] < MIN_PROBABILITY)


@cache
def _identifier() -> Any:
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError as error:
        raise UserError("--language: pip install 'capmix[language]'") from error
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)

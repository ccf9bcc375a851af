"""Neutralise what a language model could read as the end of a user's turn.

The texts of a pool are untrusted. A caption with `<|im_end|>` or a line `assistant:` would end the
turn of the prompt that contains it and begin another one. An escaped text is one line without
special tokens, role markers and control characters; other texts keep their words.
"""

import re
import unicodedata
from collections.abc import Iterable
from string import ascii_uppercase
from typing import Any

# "<" before anything but a space or a digit: <s>, </s>, <|im_end|>, <<SYS>>, <start_of_turn>.
# Compatibility forms of "<" and "[" become ASCII in tokenizers that normalise.
ANGLES, BRACKETS = "<\uff1c\ufe64", "[\uff3b"
ANGLE = re.compile(rf"[{ANGLES}](?=[^\s\d])")
BRACKET = re.compile(rf"[\{BRACKETS}](?=/?[A-Z_]+[\]\uff3d])")  # [INST], [/INST], [SEP], [IMG]
# Letters of an unfinished token at the end of a text, which the prompt would continue.
UNFINISHED = f"{BRACKETS}/_{ascii_uppercase}"
ROLES = (
    "user|assistant|system|developer|human|ai|model|bot|tool|function|instructions?|input|"
    "response|output|question|answer"
)
# At the beginning of a line, after a mark-up of headings or emphasis: "user:", "### Response:".
ROLE = re.compile(rf"^([^\w\n]*(?:{ROLES}) ?[*_]* ?)[:\uff1a]", re.I | re.M)
SPACES = re.compile(r"[^\S\n]+")  # as one, so that no pattern tries all ways to divide them
HEADING = re.compile(rf"(?<!#)#{{2,}}(?=\s?(?:{ROLES})\b)", re.IGNORECASE)
BREAKS = re.compile(r"\r\n?|[\v\f\x1c-\x1e\x85\u2028\u2029]")
JOINERS = "\u200c\u200d"  # invisible, but part of Persian words and of emoji
HIDDEN = frozenset({"Cc", "Cf", "Cs"})
SHORTEST_TOKEN = 3  # characters; some tokenizers pad with "!"


class Escape:
    """Escape texts for prompts of one model.

    `special` are the special tokens of its tokenizer. Those that are words, white space or shorter
    than three characters are left as they are: they would match ordinary texts.
    """

    def __init__(self, special: Iterable[str] = ()):
        tokens = sorted({one for one in special if _is_special(one)}, key=len, reverse=True)
        pattern = "|".join(map(re.escape, tokens))
        self._special = re.compile(pattern, re.IGNORECASE) if pattern else None

    def __call__(self, text: str) -> str:
        """Return the escaped text, one line. Escaping it again changes nothing."""
        text = SPACES.sub(" ", _visible(BREAKS.sub("\n", text)))
        before = None
        while text != before:
            before = text
            text = ROLE.sub(r"\1 -", text)
            text = " ".join(text.split())
            text = HEADING.sub("-", text)
            text = BRACKET.sub("[ ", ANGLE.sub("< ", text))
            if self._special is not None:
                text = self._special.sub(_apart, text)
            text = _finished(text)
        return text


def _finished(text: str) -> str:
    """Remove the first letter of a token that the end of a text begins."""
    text = text.rstrip(f"{ANGLES} ")
    start = len(text.rstrip(UNFINISHED))
    return text[:start] + text[start:].translate(dict.fromkeys(map(ord, BRACKETS), " "))


def special_tokens(tokenizer: Any) -> frozenset[str]:
    """Return the tokens that a tokenizer of transformers finds in a text before it splits it."""
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    return frozenset(map(str, [*tokenizer.all_special_tokens, *added]))


def _is_special(token: str) -> bool:
    is_word = token.strip().isalnum()
    return len(token.strip()) >= SHORTEST_TOKEN and not is_word


def _apart(found: re.Match[str]) -> str:
    """Separate the letters of a special token; join its words, because spaces are removed."""
    words = found[0].split()
    return " ".join(words[0]) if len(words) == 1 else "-".join(words)


def _visible(text: str) -> str:
    """Remove control and format characters and surrogates, except line breaks and joiners."""
    if text.isprintable():
        return text
    text = text.replace("\t", " ")
    return "".join(one for one in text if one in JOINERS or one == "\n" or _is_shown(one))


def _is_shown(one: str) -> bool:
    return unicodedata.category(one) not in HIDDEN

"""What is wrong with a caption, as words beside it. Captions are never edited or dropped here."""

import re

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
FLAGS = ("empty", "loop", "prompt_echo", "boilerplate", "refusal", "unfinished")


def caption_flags(text: str, finish: str, prompt: str | None = None) -> list[str]:
    """The flags of one caption, in the order of FLAGS.

    empty; loop (one to six words three times in a row, as in the reports on LAVIS, issue 713);
    prompt_echo (it begins with the prompt); boilerplate (stock-photo phrases); refusal; unfinished
    (the length cap ended it).
    """
    found = {
        "empty": not text.strip(),
        "loop": _has_loop(WORD.findall(text.lower())),
        "prompt_echo": bool(prompt and text.lower().startswith(prompt.strip().lower())),
        "boilerplate": bool(BOILERPLATE.search(text)),
        "refusal": bool(REFUSAL.search(text.replace("\u2019", "'"))),
        "unfinished": finish == "length",
    }
    return [name for name in FLAGS if found[name]]


def _has_loop(words: list[str]) -> bool:
    for length in range(1, 7):
        for start in range(len(words) - 3 * length + 1):
            piece = words[start : start + length]
            following = words[start + length : start + 3 * length]
            if following == piece * 2:
                return True
    return False

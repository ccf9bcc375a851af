"""Escape untrusted text (names, captions, server responses) for a terminal."""


def printable(text: str, keep: str = "") -> str:
    """Return `text` with every unprintable character escaped, except those in `keep`.

    Unprintable are control characters, which control a terminal or break a line, and marks that
    change the direction of text.
    """
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() or one in keep else _escaped(one) for one in text)


def _escaped(one: str) -> str:
    return one.encode("unicode_escape").decode("ascii")

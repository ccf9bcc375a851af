"""Text from outside (names, captions, answers of servers) as a terminal may be given it."""


def printable(text: str, keep: str = "") -> str:
    """`text` with every character written out that does not print, but those of `keep`.

    Those are control characters, which steer a terminal or break a line, and marks that turn a
    text's direction.
    """
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() or one in keep else _written_out(one) for one in text)


def _written_out(one: str) -> str:
    return one.encode("unicode_escape").decode("ascii")

"""The words of a command line, before any command is imported."""

from collections.abc import Sequence

VALUED = ("--log-file", "--progress")
FLAGS = ("--quiet", "--verbose")


def behind_command(tokens: Sequence[str]) -> list[str]:
    """`--quiet caption ...` as `caption --quiet ...`, where these options are declared."""
    at = 0
    while at < len(tokens) and tokens[at].partition("=")[0] in (*FLAGS, *VALUED):
        at += 2 if tokens[at] in VALUED else 1
    given, rest = tokens[:at], tokens[at:]
    if not rest or rest[0].startswith("-"):
        return list(rest)
    return [rest[0], *given, *rest[1:]]

"""Rearrange and inspect the words of a command line before any command is imported."""

from collections.abc import Sequence

PROGRESS = "--progress"
VALUED = ("--log-file", PROGRESS)
FLAGS = ("--quiet", "--verbose")


def behind_command(tokens: Sequence[str]) -> list[str]:
    """Turn `--quiet caption ...` into `caption --quiet ...`: commands declare these options."""
    at = 0
    while at < len(tokens) and tokens[at].partition("=")[0] in (*FLAGS, *VALUED):
        at += 2 if tokens[at] in VALUED else 1
    given, rest = tokens[:at], tokens[at:]
    if not rest or rest[0].startswith("-"):
        return list(rest)
    return [rest[0], *given, *rest[1:]]


def asks_for_json(tokens: Sequence[str]) -> bool:
    """Return whether the last `--progress` is `json`; the other options need not be valid."""
    options = list(tokens)
    if "--" in options:
        options = options[: options.index("--")]
    values = [
        token.removeprefix(f"{PROGRESS}=") if token != PROGRESS else behind
        for token, behind in zip(options, [*options[1:], ""], strict=False)
        if token.partition("=")[0] == PROGRESS
    ]
    return values[-1:] == ["json"]

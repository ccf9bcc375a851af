"""The calls of capmix in a shell script, found without running it."""

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

HEREDOC = re.compile(r"<<-?[ \t]*(['\"]?)(\w+)\1([^\n]*\n)(.*?\n)??[ \t]*\2[ \t]*(?=\n|$)", re.S)
VARIABLE = re.compile(r"\$(?:\{(\w+)(?::?[-=]([^}]*))?[^}]*\}|(\w+)|[@#?*!$-])")
MARK = re.compile("\0(.*?)\1(.*?)\2")
ASSIGNED = re.compile(r"([A-Za-z_]\w*)=(.*)", re.S)
KEYWORDS = ("do", "then", "else", "elif", "if", "while", "until", "!", "{", "export")
# Programs that start another one, whose options are not looked at.
LAUNCHERS = (
    "docker", "env", "exec", "kubectl", "nice", "nohup", "ray", "srun", "time", "timeout",
    "torchrun", "xargs",
)  # fmt: skip
UNKNOWN = "1"  # a value that most options take


@dataclass
class _Command:
    line: int
    words: list[str] = field(default_factory=list)


def capmix_calls(script: str) -> Iterator[tuple[int, list[str]]]:
    """Line, from 0, and arguments of each call; those of a loop once per value of its variables.

    A variable that the script does not set is `1`.
    """
    values: dict[str, list[str]] = {}
    for command in _commands(script):
        words = list(command.words)
        while words and words[0] in KEYWORDS:
            del words[0]
        if len(words) > 2 and words[0] == "for" and words[2] == "in":
            values[words[1]] = words[3:]
            continue
        while words and (found := ASSIGNED.fullmatch(words[0])):
            values[found.group(1)] = [found.group(2)]
            del words[0]
        arguments = _arguments(words)
        if arguments is not None:
            for one in _filled(arguments, values):
                yield command.line, one


def _arguments(words: list[str]) -> list[str] | None:
    """Behind `capmix`; None where the command is another program."""
    for at, word in enumerate(words):
        is_module = word == "capmix" and at > 0 and words[at - 1] == "-m"
        is_program = word.rpartition("/")[2] == "capmix" and (at == 0 or words[0] in LAUNCHERS)
        if is_module or is_program:
            return words[at + 1 :]
    return None


def _filled(words: list[str], values: dict[str, list[str]]) -> Iterator[list[str]]:
    names = list(dict.fromkeys(name for word in words for name, _ in MARK.findall(word)))
    choices = [values.get(name, [""]) or [""] for name in names]
    for chosen in itertools.islice(itertools.product(*choices), 100):
        known = dict(zip(names, chosen, strict=True))

        def fill(match: re.Match[str], known: dict[str, str] = known) -> str:
            value = known[match.group(1)] or match.group(2) or UNKNOWN
            return MARK.sub(UNKNOWN, value)

        yield [MARK.sub(fill, word) for word in words]


def _commands(script: str) -> list[_Command]:
    """Split at newlines, `;`, `|`, `&` and parentheses; without comments and redirections."""
    script = HEREDOC.sub(
        lambda match: match.group(3).rstrip("\n") + "\n" * match.group(0).count("\n"), script
    )
    found: list[_Command] = []
    current, word = _Command(0), None
    skips = False  # the next word is the file of a redirection
    at, line = 0, 0

    def end_word() -> None:
        nonlocal word, skips
        if word is not None:
            if not skips:
                current.words.append(word)
            skips, word = False, None

    def end_command() -> None:
        nonlocal current, skips
        end_word()
        skips = False
        if current.words:
            found.append(current)
        current = _Command(line)

    quote = ""
    while at < len(script):
        here = script[at]
        if here == "\n":
            line += 1
        if quote == "'":
            if here == "'":
                quote = ""
            else:
                word = (word or "") + here
            at += 1
        elif here == "\\" and at + 1 < len(script):
            follows = script[at + 1]
            if follows == "\n":
                line += 1
            else:
                word = (word or "") + follows
            at += 2
        elif here == "$" and script.startswith("$(", at):
            inner, length = _inside(script, at + 2)
            for one in _commands(inner):
                one.line += line
                found.append(one)
            word = (word or "") + UNKNOWN
            line += inner.count("\n")
            at += 2 + length
        elif here == "$" and (variable := VARIABLE.match(script, at)):
            name = variable.group(1) or variable.group(3) or "?"
            word = f"{word or ''}\0{name}\1{variable.group(2) or ''}\2"
            at = variable.end()
        elif here == '"' or (here == "'" and not quote):
            quote = "" if quote else here
            word = word or ""
            at += 1
        elif quote:
            word = (word or "") + here
            at += 1
        elif here == "#" and word is None:
            at = script.find("\n", at) if "\n" in script[at:] else len(script)
        elif here in "<>":
            if word is not None and word.isdigit():
                word = None
            end_word()
            while at < len(script) and script[at] in "<>&":
                at += 1
            skips = True
        elif here in "\n;|&()":
            end_command()
            at += 1
        elif here in " \t":
            end_word()
            at += 1
        else:
            if word is None and not current.words:
                current.line = line
            word = (word or "") + here
            at += 1
    end_command()
    return found


def _inside(script: str, start: int) -> tuple[str, int]:
    """The text up to the parenthesis that closes `$(`, and its length with that."""
    depth = 1
    for at in range(start, len(script)):
        depth += {"(": 1, ")": -1}.get(script[at], 0)
        if depth == 0:
            return script[start:at], at + 1 - start
    return script[start:], len(script) - start

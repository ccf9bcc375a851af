"""Ways in which a JSON file is damaged: by a full disk, an interrupted copy, another program."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

DEEP = 100_000
WHOLE: dict[str, bytes] = {
    "empty": b"",
    "blank": b" \n",
    "zeros": bytes(64),
    "text": b"not json\n",
    "list": b"[]",
    "numbers": b"[1, 2]",
    "number": b"7",
    "null": b"null",
    "string": b'"text"',
    "object": b"{}",
    "deep_list": b"[" * DEEP + b"]" * DEEP,
    "deep_object": b'{"a":' * DEEP + b"1" + b"}" * DEEP,
    "long_number": b"1" * 5_000,
    "not_utf8": b'{"pool": "\xff\xfe"}',
    "utf16": '{"pool": "x"}'.encode("utf-16"),
}
VALUES: tuple[Any, ...] = (None, True, -1, 2**70, 1.5, "x", [], [1], {}, {"x": "y"})


def damage(path: Path, how: str) -> None:
    """Damage a file in one of the ways of WHOLE or FORMS."""
    data = path.read_bytes()
    if how == "directory":
        path.unlink()
        path.mkdir()
    elif how == "truncated":
        path.write_bytes(data[: len(data) // 2])
    else:
        path.write_bytes(WHOLE[how])


FORMS = ("directory", "truncated", *WHOLE)


def changed_values(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield descriptions and bytes of changed variants of a file's object.

    Each key is removed, or its value replaced by one of another type.
    """
    value = json.loads(data)
    for key in value:
        without = {name: one for name, one in value.items() if name != key}
        yield f"without {key}", json.dumps(without).encode()
        for other in VALUES:
            if type(other) is not type(value[key]) or other in (-1, 2**70):
                yield f"{key} = {other!r}", json.dumps(value | {key: other}).encode()

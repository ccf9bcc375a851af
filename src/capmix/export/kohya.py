"""Several captions per image for kohya's sd-scripts.

With `enable_wildcard = true`, sd-scripts selects one line of a caption at random in each step: from
the .txt file beside an image (DreamBooth method, one dataset entry per folder), or from `caption`
in a metadata file (fine-tuning method, all folders at once). `{a|b}` in a caption is then also a
choice, so braces are doubled. Without this option, only the first line is read.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from capmix.storage.record import Sink


def caption_lines(texts: Sequence[Mapping[str, Any]]) -> str:
    """Return the contents of an image's text file: one line per text, three for a text of weight 3.

    It is never empty, because sd-scripts rejects empty files.
    """
    lines = (_line(one["text"]) for one in texts for _ in range(one["weight"]))
    return "".join(f"{line}\n" for line in lines)


def _line(text: str) -> str:
    """Join a text into one line and escape its braces."""
    return " ".join(text.split()).replace("{", "{{").replace("}", "}}")


def write_kohya(stream: Sink, lines: Iterable[Mapping[str, Any]]) -> None:
    """Write `metadata.json`: image path -> `caption`, one line per text."""
    stream.write(b"{")
    for number, line in enumerate(lines):
        name = json.dumps(line["file_name"], ensure_ascii=False)
        about = {"caption": caption_lines(line["texts"]).removesuffix("\n")}
        one = f"{name}: {json.dumps(about, ensure_ascii=False)}"
        stream.write(b",\n" if number else b"\n")
        stream.write(one.encode("utf-8", "replace"))
    stream.write(b"\n}\n")

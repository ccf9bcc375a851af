"""Several captions per image for kohya's sd-scripts.

With `enable_wildcard = true` it takes one line of a caption at random, in each step anew: of the
.txt file beside an image (DreamBooth's method, folders one by one), or of `caption` in a metadata
file (fine-tuning's method, all folders at once). Without it the first line alone is read. Then too,
`{a|b}` in a caption is a choice, unless braces are doubled.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from capmix.storage.record import Sink


def caption_lines(texts: Sequence[Mapping[str, Any]]) -> str:
    """The text file of an image: one line per text, a text of weight 3 three times. It is never
    empty, which sd-scripts refuses."""
    lines = (_line(one["text"]) for one in texts for _ in range(one["weight"]))
    return "".join(f"{line}\n" for line in lines)


def _line(text: str) -> str:
    """In one line, with braces that choose nothing."""
    return " ".join(text.split()).replace("{", "{{").replace("}", "}}")


def write_kohya(stream: Sink, lines: Iterable[Mapping[str, Any]]) -> None:
    """`metadata.json`: for each image, by its path, `caption` with one line per text."""
    stream.write(b"{")
    for number, line in enumerate(lines):
        name = json.dumps(line["file_name"], ensure_ascii=False)
        about = {"caption": caption_lines(line["texts"]).removesuffix("\n")}
        one = f"{name}: {json.dumps(about, ensure_ascii=False)}"
        stream.write(b",\n" if number else b"\n")
        stream.write(one.encode("utf-8", "replace"))
    stream.write(b"\n}\n")

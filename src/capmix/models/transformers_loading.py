"""Load models of transformers: errors in one line, and no tensors that the files lack."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from capmix.errors import UserError


@contextmanager
def loading(what: str, expected: str = "") -> Iterator[None]:
    """Raise UserError in one line, with `what` and `expected`, for any error of loading a model.

    safetensors, torch, the checks of a config and a model's code raise errors of many types.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        first = " ".join(str(error).split())[:300]
        raise UserError(f"{what}: cannot be loaded ({first}){expected}") from error


def load_complete(
    kind: Any, name: str, what: str, options: Mapping[str, Any], unused: tuple[str, ...] = ()
) -> Any:
    """Return the model that `kind.from_pretrained` reads from safetensors.

    transformers sets tensors that the files lack to random values, and only logs it. Here, this is
    an error, but for tensors whose names begin with one of `unused`. `what` names the model in the
    error. Raises UserError, and what transformers raises.
    """
    loaded, about = kind.from_pretrained(
        name, use_safetensors=True, output_loading_info=True, **options
    )
    missing = sorted(one for one in about["missing_keys"] if not one.startswith(unused))
    if missing:
        raise UserError(
            f"{what}: its weights lack {len(missing)} tensors, such as {missing[0]}; expected the "
            f"files of a {type(loaded).__name__}"
        )
    return loaded

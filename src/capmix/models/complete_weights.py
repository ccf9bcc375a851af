"""Load models of transformers whose files have all tensors of the architecture."""

from collections.abc import Mapping
from typing import Any

from capmix.errors import UserError


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

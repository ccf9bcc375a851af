"""The evaluation sets that `embedded` names: Tux Paint stamps, in a package of their own."""

from importlib.util import find_spec
from pathlib import Path

from capmix.errors import UserError
from capmix.models.registry import install_command

PACKAGE = "capmix_tuxpaint"  # GPL-2, so it is not part of capmix's wheel


def embedded_sets_folder() -> Path:
    """The folder of the embedded sets. Raises UserError where the package is not installed."""
    found = find_spec(PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise UserError(
            "the evaluation sets `embedded` are in the package capmix-tuxpaint: "
            f"{install_command([PACKAGE])}"
        )
    return Path(found.submodule_search_locations[0])


def embedded_evalsets() -> list[str]:
    """Paths of the embedded test sets, for zero-shot classification and for retrieval.

    Raises UserError where the package is not installed.
    """
    return [str(path) for path in sorted(embedded_sets_folder().glob("wds_*_test"))]

"""Parts that are not per shard, such as subsets and measures: reused if intact, else recomputed."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from capmix.errors import UserError
from capmix.storage.draft import Draft, MadeMeanwhileError
from capmix.storage.marker import Marker
from capmix.storage.store import Store


def once(
    store: Store,
    name: str,
    inputs: dict[str, str],
    config: dict[str, Any],
    make: Callable[[Draft], Marker],
    defaults: Mapping[str, Any] | None = None,
    files: Sequence[str] = (),
) -> tuple[Marker, bool]:
    """Compute a part that is not per shard, unless it is up to date.

    It is up to date if it is finished with these inputs and settings, `files` exist, and the
    digests of all its files match. Returns the marker, and whether the part was computed now.
    """
    is_there = all(store.size(one) >= 0 for one in files)  # markers of capmix 0.1 name none
    known = _made(store, name, inputs, config, defaults) if is_there else None
    if known is not None:
        return known, False
    with store.draft(name) as draft:
        marker = make(draft)
        try:
            return draft.commit(marker), True
        except MadeMeanwhileError:
            known = _made(store, name, inputs, config, defaults)
            if known is None:
                raise UserError(
                    f"{store.path(name)}: another run is writing it; rerun the same command later"
                ) from None
            return known, False


def _made(
    store: Store,
    name: str,
    inputs: dict[str, str],
    config: dict[str, Any],
    defaults: Mapping[str, Any] | None,
) -> Marker | None:
    marker = store.read_marker(name)
    if marker is None or not store.is_done(name, inputs, config, defaults):
        return None
    return None if store.damage(marker) else marker

"""Upload an export to a data set of the Hugging Face Hub, with the Hub's own client.

Only files that the export lists are sent, some at a time, each time with a commit; the card is in
the last one. What the Hub has already is not sent again. The token is the client's affair: that of
HF_TOKEN or of `hf auth login`.
"""

import hashlib
import logging
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from capmix.errors import UserError
from capmix.export.manifest import ExportTarget
from capmix.storage.hub import need_hub
from capmix.storage.layout import EXPORT_CARD, EXPORT_MARKERS

log = logging.getLogger(__name__)

Result = TypeVar("Result")
FILES_AT_ONCE = 200  # of a commit
BYTES_AT_ONCE = 1 << 32
OF_THE_HUB = (EXPORT_CARD, ".gitattributes")  # what a data set may have that an export has not
TOKEN = re.compile(r"hf_[A-Za-z0-9]{4,}")
SHOWN = 300  # characters of an error of the Hub
ADVICE = {
    401: "it knows no token of yours: run `hf auth login`, or set HF_TOKEN",
    403: "the token may not write there: use one with write access, or another USER",
    404: "there is no such user, organization or data set, or the token may not see it",
    409: "another change was made there at the same time",
    412: "another change was made there at the same time",
}


@dataclass(frozen=True)
class HubDataset:
    """A data set of the Hub that exists; `api` is huggingface_hub's HfApi."""

    name: str
    api: Any


def open_dataset(name: str, private: bool) -> HubDataset:
    """The data set USER/NAME, created where it is new. Raises UserError where the Hub cannot be
    reached or does not allow it, where the data set is there already and not `private` as asked
    for, or where the Hub's client is not installed."""
    try:
        from huggingface_hub import HfApi, constants
    except ImportError as error:
        raise UserError("--push needs a package: pip install 'capmix[hub]'") from error
    need_hub(f"--push {name}")
    found = HubDataset(name, HfApi(endpoint=constants.ENDPOINT))
    _asked(name, lambda: found.api.create_repo(
        name, repo_type="dataset", private=private or None, exist_ok=True
    ))  # fmt: skip
    if private and not _asked(name, lambda: found.api.dataset_info(name)).private:
        raise UserError(
            f"--push {name}: the data set is public, and creating it with --private changes "
            "nothing; make it private on the Hub, name another one, or leave out --private"
        )
    return found


def push(target: ExportTarget, dataset: HubDataset, overwrite: bool = False) -> int:
    """Upload the files of an export; returns how many were sent.

    Raises UserError where the Hub fails, or where the data set has files that the export lacks,
    which are removed with `overwrite`. A card that differs on the Hub is kept without it.
    """
    api, name = dataset.api, dataset.name
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, RepoFile

    tree = _asked(name, lambda: list(api.list_repo_tree(name, repo_type="dataset", recursive=True)))
    there = {one.path: one for one in tree if isinstance(one, RepoFile)}
    ours = _files(target)
    others = sorted(there.keys() - ours - set(OF_THE_HUB))
    if others and not overwrite:
        raise UserError(
            f"--push {name}: the data set has {len(others):,} files that this export lacks, such "
            f"as {others[0]}; name another data set, or remove them with --overwrite"
        )
    missing = [one for one in sorted(ours) if not _is_there(target.path(one), there.get(one))]
    if EXPORT_CARD in there and EXPORT_CARD in missing and not overwrite:
        missing.remove(EXPORT_CARD)
        log.warning(
            "export: %s has another README.md, which is kept; --overwrite replaces it", name
        )
    missing.sort(key=lambda one: one == EXPORT_CARD)
    batches = list(_batches(target, missing))
    log.info("push: %s files to %s, %s are there", f"{len(missing):,}", name,
             f"{len(ours) - len(missing):,}")  # fmt: skip
    for number, batch in enumerate(batches, 1):
        operations: list[Any] = [CommitOperationAdd(one, target.path(one)) for one in batch]
        if number == len(batches):
            operations += [CommitOperationDelete(one) for one in others]
        _commit(dataset, operations, f"{number} of {len(batches)}")
    if others and not batches:
        _commit(dataset, [CommitOperationDelete(one) for one in others], "removals")
    log.info("push: %s", f"{api.endpoint}/datasets/{name}")
    return len(missing)


def _commit(dataset: HubDataset, operations: list[Any], what: str) -> None:
    _asked(dataset.name, lambda: dataset.api.create_commit(
        dataset.name,
        operations,
        commit_message=f"Upload a capmix export ({what})",
        repo_type="dataset",
    ))  # fmt: skip


def _files(target: ExportTarget) -> set[str]:
    """The files that the export lists and that are there, also those that were there before it;
    README.md also where somebody filled it in. Links are left out."""
    lists = [*target.lists(), *target.lists_of_found()]
    listed = {name for list_ in lists for name in target.written(list_)}
    found = {name for name in listed if not name.startswith(f"{EXPORT_MARKERS}/")} | {EXPORT_CARD}
    return {name for name in found if _is_regular(target.path(name))}


def _is_regular(path: str) -> bool:
    try:
        return stat.S_ISREG(os.lstat(path).st_mode)
    except OSError:
        return False


def _is_there(path: str, known: Any) -> bool:
    """Whether the Hub has a file with these bytes, as a RepoFile of it says."""
    size = os.path.getsize(path)
    if known is None or known.size != size:
        return False
    if known.lfs is not None:
        return bool(_digest(path, hashlib.sha256()) == known.lfs.sha256)
    blob = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    return bool(_digest(path, blob) == known.blob_id)


def _digest(path: str, state: Any) -> str:
    with open(path, "rb") as stream:
        while data := stream.read(1 << 20):
            state.update(data)
    return str(state.hexdigest())


def _batches(target: ExportTarget, names: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for name in names:
        batch.append(name)
        size += target.size(name)
        if len(batch) == FILES_AT_ONCE or size >= BYTES_AT_ONCE:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _asked(name: str, ask: Callable[[], Result]) -> Result:
    """What the Hub answers. Raises UserError in one line, with what to do."""
    try:
        return ask()
    except UserError:
        raise
    except Exception as error:  # the client and its HTTP library raise many types
        status = getattr(getattr(error, "response", None), "status_code", None)
        first = TOKEN.sub("hf_...", " ".join(_cause(error).split())[:SHOWN])
        why = ADVICE.get(status or 0, "the upload broke off")
        raise UserError(
            f"--push {name}: {why} ({first}). Rerun the same command to resume; what is there is "
            "not sent again"
        ) from error


def _cause(error: BaseException) -> str:
    """The client wraps what the network said."""
    inner = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ else error
    return f"{error} {inner}" if inner is not error else str(error) or type(error).__name__

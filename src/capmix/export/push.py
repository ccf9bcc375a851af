"""Upload an export to a Hugging Face Hub dataset, with huggingface_hub.

Only files that the export lists are uploaded, in batches of one commit each; the card is in the
last commit. Files that the Hub already has are skipped. huggingface_hub reads the token from
HF_TOKEN or from `hf auth login`.
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
FILES_AT_ONCE = 200  # per commit
BYTES_AT_ONCE = 1 << 32
OF_THE_HUB = (EXPORT_CARD, ".gitattributes")  # files that the Hub may have in addition
TOKEN = re.compile(r"hf_[A-Za-z0-9]{4,}")
SHOWN = 300  # characters of the Hub's error message
ADVICE = {
    401: "not authenticated: run `hf auth login`, or set HF_TOKEN",
    403: "the token has no write access: use one with write access, or another USER",
    404: "user, organization or dataset not found, or not visible to the token",
    409: "conflict with a concurrent change",
    412: "conflict with a concurrent change",
}


@dataclass(frozen=True)
class HubDataset:
    """An existing dataset on the Hub; `api` is a huggingface_hub.HfApi."""

    name: str
    api: Any


def open_dataset(name: str, private: bool) -> HubDataset:
    """Return the dataset USER/NAME, creating it if it does not exist.

    Raises UserError if the Hub cannot be reached or denies access, if `private` is set and the
    dataset exists and is public, or if huggingface_hub is not installed.
    """
    try:
        from huggingface_hub import HfApi, constants
    except ImportError as error:
        raise UserError("--push requires huggingface_hub: pip install 'capmix[hub]'") from error
    need_hub(f"--push {name}")
    found = HubDataset(name, HfApi(endpoint=constants.ENDPOINT))
    _call_hub(name, lambda: found.api.create_repo(
        name, repo_type="dataset", private=private or None, exist_ok=True
    ))  # fmt: skip
    if private and not _call_hub(name, lambda: found.api.dataset_info(name)).private:
        raise UserError(
            f"--push {name}: --private has no effect, because the dataset exists and is public; "
            "make it private on the Hub, name another dataset, or remove --private"
        )
    return found


def push(target: ExportTarget, dataset: HubDataset, overwrite: bool = False) -> int:
    """Upload the files of an export; return how many were uploaded.

    With `overwrite`, files that the export does not have are removed from the dataset, and a card
    that differs is replaced; without it, such files raise UserError, and the card is kept. Raises
    UserError if a request to the Hub fails.
    """
    api, name = dataset.api, dataset.name
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, RepoFile

    tree = _call_hub(
        name, lambda: list(api.list_repo_tree(name, repo_type="dataset", recursive=True))
    )
    there = {one.path: one for one in tree if isinstance(one, RepoFile)}
    ours = _files(target)
    others = sorted(there.keys() - ours - set(OF_THE_HUB))
    if others and not overwrite:
        raise UserError(
            f"--push {name}: the dataset has {len(others):,} files that are not in this export "
            f"(first: {others[0]}); name another dataset, or remove the files with --overwrite"
        )
    missing = [one for one in sorted(ours) if not _is_there(target.path(one), there.get(one))]
    if EXPORT_CARD in there and EXPORT_CARD in missing and not overwrite:
        missing.remove(EXPORT_CARD)
        log.warning(
            "export: kept the README.md of %s, which differs; use --overwrite to replace it", name
        )
    missing.sort(key=lambda one: one == EXPORT_CARD)
    batches = list(_batches(target, missing))
    log.info("push: uploading %s files to %s, %s up to date", f"{len(missing):,}", name,
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
    _call_hub(dataset.name, lambda: dataset.api.create_commit(
        dataset.name,
        operations,
        commit_message=f"Upload a capmix export ({what})",
        repo_type="dataset",
    ))  # fmt: skip


def _files(target: ExportTarget) -> set[str]:
    """Return the listed files that exist, including files that existed before the export.

    README.md is included even if the user has edited it. Links are skipped.
    """
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
    """Return whether the Hub has the file with the same bytes; `known` is its RepoFile."""
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


def _call_hub(name: str, ask: Callable[[], Result]) -> Result:
    """Call the Hub; turn any failure into a one-line UserError with advice."""
    try:
        return ask()
    except UserError:
        raise
    except Exception as error:  # the client and its HTTP library raise many types
        status = getattr(getattr(error, "response", None), "status_code", None)
        first = TOKEN.sub("hf_...", " ".join(_cause(error).split())[:SHOWN])
        why = ADVICE.get(status or 0, "upload failed")
        raise UserError(
            f"--push {name}: {why} ({first}). Rerun the same command to resume; uploaded files are "
            "skipped"
        ) from error


def _cause(error: BaseException) -> str:
    """Return the message of the network error that the client wraps."""
    inner = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ else error
    return f"{error} {inner}" if inner is not error else str(error) or type(error).__name__

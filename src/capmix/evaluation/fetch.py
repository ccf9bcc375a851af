"""Fetch evaluation sets from the Hub, with its own client: what is there is kept, what was broken
off goes on, and the sizes of all files are compared with what the Hub says."""

import logging
from collections.abc import Sequence
from pathlib import Path

from capmix.errors import UserError
from capmix.evaluation.tasks import EvalTask

log = logging.getLogger(__name__)

# Data alone: the Python of the repositories is left where it is.
PATTERNS = ["*.txt", "*.tar", "*.csv", "*.zip"]


def fetch(tasks: Sequence[EvalTask], directory: str, endpoint: str | None = None) -> list[Path]:
    """Fetch the sets of `tasks` into folders below `directory`; returns the folders.

    `endpoint` is the Hub's address; by default what its client takes, HF_ENDPOINT or the Hub's own.

    Raises UserError where the Hub cannot be reached, or a file does not have the size it tells.
    """
    try:
        from huggingface_hub import HfApi, snapshot_download
    except ImportError as error:
        raise UserError("evalsets fetch: pip install 'capmix[hub]'") from error
    folders = []
    for number, task in enumerate(tasks, 1):
        folder = Path(directory) / task.folder
        log.info("evalsets: %d of %d, %s", number, len(tasks), task.hub)
        try:
            info = HfApi(endpoint=endpoint).dataset_info(task.hub, files_metadata=True)
            snapshot_download(
                task.hub,
                repo_type="dataset",
                revision=info.sha,
                local_dir=folder,
                allow_patterns=PATTERNS,
                endpoint=endpoint,
            )
        except Exception as error:  # the client and its HTTP library raise many types
            first = " ".join(str(error).split())[:300]
            raise UserError(
                f"evalsets: {task.hub} cannot be fetched ({first}). Rerun the same command "
                "to resume."
            ) from error
        sizes = {one.rfilename: one.size for one in info.siblings or []}
        _check_sizes(folder, sizes)
        folders.append(folder)
    return folders


def _check_sizes(folder: Path, sizes: dict[str, int | None]) -> None:
    for name, size in sizes.items():
        if not any(Path(name).match(pattern) for pattern in PATTERNS):
            continue
        path = folder / name
        found = path.stat().st_size if path.exists() else None
        if found is None or (size is not None and found != size):
            raise UserError(
                f"evalsets: {path} has {found} bytes, expected {size}. Remove it and fetch again."
            )

"""Download evaluation sets from the Hub with huggingface_hub.

Existing files are kept, interrupted downloads resume, and the sizes of all files are checked.
"""

import logging
from collections.abc import Sequence
from pathlib import Path

from capmix.errors import UserError
from capmix.evaluation.tasks import EvalTask

log = logging.getLogger(__name__)

# Download only data, not the Python code of the repositories.
PATTERNS = ["*.txt", "*.tar", "*.csv", "*.zip"]


def fetch(tasks: Sequence[EvalTask], directory: str, endpoint: str | None = None) -> list[Path]:
    """Download the sets of `tasks` to subfolders of `directory`; return these folders.

    `endpoint` is the URL of the Hub (default: HF_ENDPOINT, or huggingface.co). Raises UserError if
    a download fails or a file does not have the expected size.
    """
    try:
        from huggingface_hub import HfApi, snapshot_download
    except ImportError as error:
        raise UserError(
            "evalsets fetch needs huggingface_hub: pip install 'capmix[hub]'"
        ) from error
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
                f"evalsets: cannot download {task.hub} ({first}). Rerun the same command to resume."
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
        if found is None:
            raise UserError(f"evalsets: {path} is missing. Rerun the same command.")
        if size is not None and found != size:
            raise UserError(
                f"evalsets: {path} has {found} bytes, expected {size}. "
                "Delete it and rerun the same command."
            )

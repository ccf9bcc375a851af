"""Results on disk: one JSON line per task, for one model at one precision.

`eval_results.jsonl` has the DataComp tasks in the format of its evaluate.py (key, dataset, metrics
with main_metric), which its aggregate_scores.py can read. `eval_other_sets.jsonl` has other sets.
File names include the precision unless it is float32. A line of a set with classes also has their
counts (classes.py); lines of earlier versions lack them. Each line has a fingerprint of the model,
so results of another model are never reused.
"""

import json
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from capmix.errors import UserError
from capmix.evaluation import classes
from capmix.storage.json_text import parse_json
from capmix.storage.store import Store

log = logging.getLogger(__name__)

OURS = ("key", "dataset", "metrics", "metric", "data", "fingerprint", "precision")


@dataclass
class ResultsFile:
    """Results by task. Each change is written to the file immediately."""

    path: Path
    fingerprint: str
    precision: str
    lines: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def of(cls, folder: Path, kind: str, fingerprint: str, precision: str) -> "ResultsFile":
        """Open a file of `folder`, ignoring results of other models.

        Raises UserError if it was written by another tool: DataComp's evaluate.py uses the same
        name.
        """
        ending = "" if precision == "float32" else f"_{precision}"
        found = cls(folder / f"{kind}{ending}.jsonl", fingerprint, precision)
        lines = found._read()
        found.lines = {x["key"]: x for x in lines if x["fingerprint"] == fingerprint}
        if len(found.lines) < len(lines):
            count = len(lines) - len(found.lines)
            log.warning("eval: ignoring %d results of another model", count)
        return found

    def done(self, key: str, data: str) -> dict[str, Any] | None:
        """Return the result of a task if it was computed on the data with this digest."""
        line = self.lines.get(key)
        return line if line is not None and line["data"] == data else None

    def put(self, line: dict[str, Any]) -> dict[str, Any]:
        """Write the result of a task; return it with fingerprint and precision added."""
        whole = line | {"fingerprint": self.fingerprint, "precision": self.precision}
        self.lines[line["key"]] = whole
        self._write()
        return whole

    def drop(self, key: str) -> None:
        if self.lines.pop(key, None) is not None:
            self._write()

    def _read(self) -> list[dict[str, Any]]:
        try:
            lines = [parse_json(line) for line in self.path.read_bytes().splitlines()]
        except FileNotFoundError:
            return []
        except (IsADirectoryError, ValueError) as error:
            why = "a directory" if isinstance(error, OSError) else error
            raise UserError(f"{self.path} is damaged ({why}); restore it or remove it") from error
        if not all(isinstance(line, dict) and set(OURS) <= line.keys() for line in lines):
            raise UserError(f"{self.path}: contains results of another tool; choose another --out")
        if not all(_is_sound(line) for line in lines):
            raise UserError(f"{self.path} is damaged (a value has the wrong type); remove it")
        return lines

    def _write(self) -> None:
        lines = "".join(json.dumps(line) + "\n" for line in self.lines.values())
        Store(str(self.path.parent)).write_bytes(self.path.name, lines.encode())


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read the results of any model from a file; an empty list if it does not exist.

    Raises UserError if the file is damaged or was written by another tool.
    """
    return ResultsFile(path, "", "")._read()


def _is_sound(line: dict[str, Any]) -> bool:
    """Return whether the values have the expected types."""
    texts = all(isinstance(line[name], str) for name in ("key", "dataset", "data", "fingerprint"))
    metrics = line["metrics"]
    if not texts or not isinstance(metrics, dict) or "main_metric" not in metrics:
        return False
    is_number = (value is None or type(value) in (int, float) for value in metrics.values())
    is_whole = classes.is_sound(line.get("classes"))
    return isinstance(line["metric"], str | None) and all(is_number) and is_whole

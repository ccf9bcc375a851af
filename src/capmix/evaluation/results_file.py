"""Results on disk: a line of JSON for each task, all of one model at one precision.

`eval_results.jsonl` holds DataComp's tasks in the form of its evaluate.py (key, dataset, metrics
with main_metric), which its aggregate_scores.py reads; `eval_other_sets.jsonl` those of other sets.
Files of another precision than float32 say so in their names. Each line names the model by a
fingerprint: a line of another is never taken for done.
"""

import json
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from capmix.errors import UserError
from capmix.storage.json_text import parse_json
from capmix.storage.store import Store

log = logging.getLogger(__name__)

OURS = ("key", "dataset", "metrics", "metric", "data", "fingerprint", "precision")


@dataclass
class ResultsFile:
    """Lines by task. What is put in or taken out is in the file at once."""

    path: Path
    fingerprint: str
    precision: str
    lines: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def of(cls, folder: Path, kind: str, fingerprint: str, precision: str) -> "ResultsFile":
        """Open a file of `folder`, without lines of other models. Raises UserError where it is none
        of ours: DataComp's evaluate.py writes one of the same name."""
        ending = "" if precision == "float32" else f"_{precision}"
        found = cls(folder / f"{kind}{ending}.jsonl", fingerprint, precision)
        lines = found._read()
        found.lines = {x["key"]: x for x in lines if x["fingerprint"] == fingerprint}
        if len(found.lines) < len(lines):
            count = len(lines) - len(found.lines)
            log.warning("eval: %d results are of another model and are left out", count)
        return found

    def done(self, key: str, data: str) -> dict[str, Any] | None:
        """The line of a task, if it is of the data with this digest."""
        line = self.lines.get(key)
        return line if line is not None and line["data"] == data else None

    def put(self, line: dict[str, Any]) -> dict[str, Any]:
        """Write a task's line; returns it with what names the model."""
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
            raise UserError(f"{self.path}: results of another tool; give another --out")
        if not all(_is_sound(line) for line in lines):
            raise UserError(f"{self.path} is damaged (a value of another type); remove it")
        return lines

    def _write(self) -> None:
        lines = "".join(json.dumps(line) + "\n" for line in self.lines.values())
        Store(str(self.path.parent)).write_bytes(self.path.name, lines.encode())


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a results file, of whatever model; none where there is no file. Raises UserError
    where it is none of ours."""
    return ResultsFile(path, "", "")._read()


def _is_sound(line: dict[str, Any]) -> bool:
    """Whether the values that are computed with are of their types."""
    texts = all(isinstance(line[name], str) for name in ("key", "dataset", "data", "fingerprint"))
    metrics = line["metrics"]
    if not texts or not isinstance(metrics, dict) or "main_metric" not in metrics:
        return False
    is_number = (value is None or type(value) in (int, float) for value in metrics.values())
    return isinstance(line["metric"], str | None) and all(is_number)

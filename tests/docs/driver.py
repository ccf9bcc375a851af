"""Run the Python blocks of one page in one namespace, as they are asked for on standard input.

A line of input is the JSON of a block: its text, the page's path, its first line there, and a file
for all that is printed. A line of output is the JSON of the exit code that `python` would give.
"""

import json
import os
import sys
import traceback
from typing import Any


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    asked = os.fdopen(os.dup(0), "r")
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    sys.path.insert(0, "")  # as with `python` and a notebook
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for line in asked:
        block = json.loads(line)
        with open(block["output"], "ab") as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
        code = _run(block, namespace)
        sys.stdout.flush()
        sys.stderr.flush()
        answers.write(f"{code}\n")


def _run(block: dict[str, Any], namespace: dict[str, Any]) -> int:
    try:
        # Empty lines above, so that a traceback has the page's own line numbers.
        source = "\n" * (block["line"] - 1) + block["text"]
        exec(compile(source, block["page"], "exec"), namespace)
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    main()

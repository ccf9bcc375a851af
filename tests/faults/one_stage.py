"""Run one stage over a pool, as a process that tests can kill.

    python one_stage.py STAGE POOL WORK [WORKERS]

Prints `ready` at the point where models would be loaded.
"""

import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from null_models import null_captions, null_scores

from capmix.engine import messages
from capmix.engine.settings import EngineSettings
from capmix.workspace import open_workspace

SECONDS = 0.002  # per image

STAGES = ("index", "caption", "score", "export")


def run(stage: str, pool: str, work: str, engine: EngineSettings) -> None:
    opened = open_workspace(pool, work, engine=engine)
    print("ready", flush=True)
    if stage == "index":
        opened.index()
    elif stage == "caption":
        opened.run(partial(null_captions, opened.pool, "null", SECONDS))
    elif stage == "score":
        opened.run(partial(null_scores, opened.pool, opened.store, ["raw", "null"]))
    else:
        opened.export("all", f"{work}/out", samples_per_shard=20)


if __name__ == "__main__":
    messages.show()
    workers = int(sys.argv[4]) if len(sys.argv) > 4 else None
    run(sys.argv[1], sys.argv[2], sys.argv[3], EngineSettings(workers=workers))

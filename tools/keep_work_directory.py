"""Store a small work directory of this version as test data, tests/data/work-MAJOR.MINOR.tar.gz.

Run it once per release that changes the format on disk; tests/test_legacy.py resumes from all of
them. Never rerun it for an existing version: its test data must come from that version.

    python tools/keep_work_directory.py
"""

import os
import sys
import tarfile
import tempfile
from pathlib import Path

import capmix
from capmix.cli.main import main

TESTS = Path(__file__).parent.parent / "tests"
sys.path.insert(0, str(TESTS))
from samples import sample_members, tar_bytes  # noqa: E402

TIME = 1_700_000_000  # modification time of all input files, in seconds since 1970
COMMANDS = (
    "caption pool --source mini --model mini --captions-per-image 2",
    "caption --source tags --model field:tags",
    "caption --source warm --model mini --temperature 1.5 --top-k 10 --language en",
    "import captions captions.csv --source given",
    "score --sources raw,mini,tags,given --model mini",
    "annotate --method clusters --clusters 2",
    "measure --topics 0 --sample 100",
    "mix --recipe raw-top+synthetic-above --fraction 0.5 --synthetic mini",
    "export --subset raw-top50+mini-above --out shards --samples-per-shard 3",
)
HAVE_BUDGET = ("caption", "import", "score", "measure", "mix", "export")


def write_inputs(folder: Path) -> None:
    """Write two shards of four samples, one sample without an image, and a file of captions."""
    pool = folder / "pool"
    pool.mkdir()
    for shard in range(2):
        members = []
        for row in range(4):
            number = shard * 100 + row
            key, tags = f"{shard:05d}{row:04d}", [f"tag{number}", "photo"]
            members += sample_members(key, number, f"picture {number}", tags=tags)
        if shard:
            members += [("bad.json", b'{"uid": "x"}'), ("bad.txt", b"x")]
        (pool / f"{shard:05d}.tar").write_bytes(tar_bytes(members))
    rows = (f"{number:032x},imported {number}\n" for number in (0, 1, 2, 100, 101))
    (folder / "captions.csv").write_text("uid,text\n" + "".join(rows), "utf-8")
    for path in (*pool.iterdir(), folder / "captions.csv"):
        os.utime(path, (TIME, TIME))


def write_all(folder: Path) -> None:
    """Run every stage in `folder`, and write the archive."""
    os.chdir(folder)
    write_inputs(folder)
    for command in COMMANDS:
        name, *options = command.split()
        budget = ["--max-failures", "0.2"] if name in HAVE_BUDGET else []
        if main([name, *options, "--work", "work", *budget]) != 0:
            raise SystemExit(f"failed: {command}")
    version = ".".join(capmix.__version__.split(".")[:2])
    target = TESTS / f"data/work-{version}.tar.gz"
    if target.exists():
        raise SystemExit(f"{target} already exists")
    with tarfile.open(target, "w:gz") as archive:
        for name in ("captions.csv", "pool", "shards", "work"):
            archive.add(name)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        write_all(Path(scratch))

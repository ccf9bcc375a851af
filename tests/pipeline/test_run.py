"""Whole pipelines: a folder of photos, a pool in DataComp's layout, kills at random times."""

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from samples import image_bytes, sample_members, tar_bytes, write_pool

from capmix.cli.main import main

STAGES = """
pool: {pool}
work: {work}
caption: {{mini: {{model: mini}}}}
score: {{model: mini}}
measure: {{topics: 0}}
mix: {{recipes: [raw, {{recipe: raw-top+synthetic-above, fraction: 0.5}}, synthetic]}}
export: {{samples_per_shard: 4}}
"""
TRAINED = STAGES + "probe: {{seeds: [0]}}\nreport: {{}}\n"


def contents(folder: Path) -> dict[str, bytes]:
    """Return the contents of every file except the report, which has a timestamp."""
    files = (p for p in folder.rglob("*") if p.is_file() and p.suffix != ".html")
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


def test_a_folder_of_photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(5):
        (folder / f"holiday {i}.jpg").write_bytes(image_bytes(i))
    (folder / "holiday 0.txt").write_text("the sea")
    monkeypatch.chdir(tmp_path)
    text = "pool: ./photos\nwork: ./work\ncaption: {mini: {model: mini}}\nscore: {model: mini}\n"
    (tmp_path / "p.yaml").write_text(text + "mix: {recipes: [synthetic, raw]}\nexport: {}\n")
    assert main(["run", "p.yaml"]) == 0
    sizes = [
        json.loads((tmp_path / f"work/shards/{n}/sizes.json").read_text()) for n in ("mini", "raw")
    ]
    assert sizes == [{"00000000.tar": 5}, {"00000000.tar": 1}]


@pytest.mark.slow
def test_a_pool_in_datacomps_form(tmp_path: Path) -> None:
    """Keys of 12 digits with gaps for failed downloads, samples in order of completion, PAX headers
    with a fractional mtime, suffixes in any order, and parquet and stats files next to the tars."""
    pool, draw = tmp_path / "shards", random.Random(0)
    pool.mkdir()
    for shard in range(2):
        rows = [row for row in range(12) if row % 5 != 3]
        draw.shuffle(rows)
        members = []
        for row in rows:
            number = shard * 10_000 + row
            extra = {
                "url": "http://x/y.jpg",
                "key": f"{number:012d}",
                "status": "success",
                "error_message": None,
                "face_bboxes": [],
                "width": 40,
                "height": 30,
                "original_width": 80,
                "original_height": 60,
                "exif": "{}",
                "sha256": "0",
            }
            sample = sample_members(f"{number:012d}", number, f"alt text {number}", **extra)
            draw.shuffle(sample)
            members += sample
        (pool / f"{shard:08d}.tar").write_bytes(tar_bytes(members))
        (pool / f"{shard:08d}.parquet").write_bytes(b"PAR1")
        (pool / f"{shard:08d}_stats.json").write_text('{"successes": 10}')
    file = tmp_path / "p.yaml"
    file.write_text(STAGES.format(pool=pool, work=tmp_path / "w"))
    assert main(["run", str(file)]) == 0
    kept = sum(row % 5 != 3 for row in range(12)) * 2
    for name in ("raw", "mini"):
        sizes = json.loads((tmp_path / f"w/shards/{name}/sizes.json").read_text())
        assert sum(sizes.values()) == kept
    markers = [p for p in (tmp_path / "w").rglob("*.json") if "rows_in" in p.read_text()]
    assert len(markers) > 10
    for path in markers:
        marker = json.loads(path.read_text())
        counts = marker["counts"]
        accounted = counts["ok"] + sum(counts["dropped"].values()) + sum(counts["failed"].values())
        assert accounted == marker["rows_in"], path


def test_a_second_run_makes_nothing_again(tmp_path: Path) -> None:
    file = tmp_path / "p.yaml"
    file.write_text(STAGES.format(pool=write_pool(tmp_path / "pool"), work=tmp_path / "w"))
    assert main(["run", str(file)]) == 0
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "w").rglob("*.parquet")}
    assert main(["run", str(file)]) == 0
    assert before == {p: p.stat().st_mtime_ns for p in (tmp_path / "w").rglob("*.parquet")}


@pytest.mark.slow
def test_killed_anywhere_it_goes_on_and_ends_with_the_same_files(tmp_path: Path) -> None:
    pool = write_pool(tmp_path / "pool", shards=4, samples=40)
    command = [sys.executable, "-m", "capmix", "run"]
    file = tmp_path / "p.yaml"
    work = tmp_path / "w"
    file.write_text(TRAINED.format(pool=pool, work=work))
    started = time.monotonic()
    subprocess.run([*command, str(file)], check=True, capture_output=True)
    seconds = time.monotonic() - started
    whole = contents(work)
    shutil.rmtree(work)
    draw = random.Random(1)
    for _ in range(2):
        process = subprocess.Popen(
            [*command, str(file)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        time.sleep(draw.uniform(0.3, 0.9) * seconds)
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run([*command, str(file)], check=True, capture_output=True)
    final = contents(work)
    assert final.keys() == whole.keys()
    assert [name for name in whole if whole[name] != final[name]] == []


def test_a_damaged_shard_costs_only_what_is_damaged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pool = write_pool(tmp_path / "pool", shards=3, samples=4)
    data = (pool / "00001.tar").read_bytes()
    (pool / "00001.tar").write_bytes(data[: len(data) // 2])
    file = tmp_path / "p.yaml"
    file.write_text(STAGES.format(pool=pool, work=tmp_path / "w") + "max_failures: 0.5\n")
    assert main(["run", str(file)]) == 0
    assert "truncated_shard 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pool: a\nwork: b\ncaptoin: {}", "unknown stage 'captoin'; did you mean 'caption'"),
        ("pool: a\nwork: b\nmix: {recipe: raw}", "mix"),
        ("pool: a\nwork: b\nexport: {}", "export needs the stage 'mix'"),
        ("pool: a\nwork: b\ncaption: {mini: {top_k: 0}}", "caption.mini.top_k"),
        ("work: b", "pool"),
        ("- a", "expected a mapping"),
        ("a: [", "invalid YAML"),
    ],
)
def test_a_faulty_file_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, message: str
) -> None:
    (tmp_path / "p.yaml").write_text(text)
    assert main(["run", str(tmp_path / "p.yaml")]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert "\n" not in error


EVERYTHING = """
pool: {pool}
work: {work}
import:
  - {{kind: captions, files: ["{folder}/captions.csv"], source: web}}
  - {{kind: scores, files: ["{folder}/scores.csv"], source: raw, scorer: theirs}}
caption: {{mini: {{model: mini}}}}
score: {{model: mini}}
annotate:
  - {{method: clusters, clusters: 2}}
  - {{method: semdedup, epsilon: 0.2}}
  - {{method: cliploss, rounds: 2, model: mini}}
mix:
  recipes:
    - {{recipe: semdedup}}
    - {{recipe: cliploss-top, fraction: 0.5}}
    - {{recipe: raw, where: "raw_score_theirs > 0.5", out: good}}
    - {{recipe: raw-top, fraction: [0.25, 0.5]}}
export: {{format: csv}}
"""


def test_a_file_does_what_the_commands_do(tmp_path: Path) -> None:
    """Includes import and annotate: SemDeDup and CLIPLoss from one file."""
    pool = write_pool(tmp_path / "pool", 2, 4)
    uids = [f"{shard * 100 + row:032x}" for shard in range(2) for row in range(4)]
    lines = [f"{uid},found {i}" for i, uid in enumerate(uids)]
    (tmp_path / "captions.csv").write_text("\n".join(["uid,text", *lines]))
    lines = [f"{uid},{i / 8}" for i, uid in enumerate(uids)]
    (tmp_path / "scores.csv").write_text("\n".join(["uid,score", *lines]))
    file = tmp_path / "p.yaml"
    work = tmp_path / "by-file"
    file.write_text(EVERYTHING.format(pool=pool, work=work, folder=tmp_path))
    assert main(["run", str(file)]) == 0
    other, at = str(tmp_path / "by-hand"), ["--work", str(tmp_path / "by-hand")]
    by_hand = [
        ["import", "captions", str(tmp_path / "captions.csv"), "--pool", str(pool), "--source",
         "web"],
        ["caption", "--source", "mini", "--model", "mini"],
        ["import", "scores", str(tmp_path / "scores.csv"), "--source", "raw", "--scorer", "theirs"],
        ["score", "--sources", "raw,web,mini", "--model", "mini"],
        ["annotate", "--method", "clusters", "--clusters", "2"],
        ["annotate", "--method", "semdedup", "--epsilon", "0.2"],
        ["annotate", "--method", "cliploss", "--rounds", "2", "--model", "mini"],
        ["mix", "--recipe", "semdedup", "--scorer", "mini"],
        ["mix", "--recipe", "cliploss-top", "--fraction", "0.5", "--scorer", "mini"],
        ["mix", "--recipe", "raw", "--where", "raw_score_theirs > 0.5", "--out", "good",
         "--scorer", "mini"],
        ["mix", "--recipe", "raw-top", "--fraction", "0.25,0.5", "--scorer", "mini"],
    ]  # fmt: skip
    for command in by_hand:
        assert main([*command, *at]) == 0, command
    theirs = contents(Path(other))
    ours = {name: data for name, data in contents(work).items() if not name.startswith("shards/")}
    assert ours == theirs
    assert (work / "shards/good/captions.csv").read_text().count("\n") == 4


def test_the_schema_describes_every_section(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    assert {"pool", "work", "import", "annotate", "caption", "score", "mix"} <= set(
        schema["properties"]
    )
    top_k = schema["$defs"]["CaptionSection"]["properties"]["top_k"]
    assert top_k == {
        "default": 50,
        "description": "Sample from the K most likely tokens.",
        "minimum": 1,
        "title": "Top K",
        "type": "integer",
    }

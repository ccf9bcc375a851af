"""Install built wheels into a new environment and run capmix on a folder of images.

    python tools/smoke_wheel.py dist            the base install: caption, mix, export, verify
    python tools/smoke_wheel.py dist --demo     `capmix demo`, with capmix[demo]

Uses the standard library only. Exits with 1 and the command's output where one fails.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

WRITE_IMAGES = """
import json, pathlib
from PIL import Image
pool = pathlib.Path("photos/a folder")
pool.mkdir(parents=True)
for number in range(5):
    Image.effect_mandelbrot((96, 64), (-2, -1, 1, 1), 9 + number).save(pool / f"image {number}.jpg")
    (pool / f"image {number}.json").write_text(json.dumps({"tags": f"fractal, {number}"}))
"""
BASE = (
    "doctor",
    "models",
    "recipes",
    "caption photos --work w --source tags --model field:tags",
    "mix --work w --recipe synthetic --synthetic tags --out all",
    "export --work w --subset all --out tars",
    "export --work w --subset all --out files --format files",
    "export --work w --subset all --out table --format parquet",
    "status --work w",
    "verify --work w",
    "clean --work w",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dist", type=Path, help="directory of wheels")
    parser.add_argument("--demo", action="store_true", help="run `capmix demo` instead")
    options = parser.parse_args()
    dist = options.dist.resolve()
    wheel = _only(dist.glob("capmix-*.whl"))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        python = _environment(folder / "env")
        wanted = f"{wheel}[demo]" if options.demo else str(wheel)
        _run([python, "-m", "pip", "install", "--quiet", "--find-links", str(dist), wanted], folder)
        _run([python, "-m", "pip", "check"], folder)
        if options.demo:
            shown = _run([python, "-m", "capmix", "demo"], folder)
            _expect("raw-top30+mini-above" in shown, "the demo shows its table of recipes")
            _expect((folder / "capmix-demo/report/report.html").exists(), "the demo's report")
        else:
            _base(python, folder)
    print("ok")


def _base(python: str, folder: Path) -> None:
    _run([python, "-c", WRITE_IMAGES], folder)
    for command in BASE:
        _run([python, "-m", "capmix", *command.split()], folder)
    names = sorted(path.name for path in (folder / "files").rglob("image*.txt"))
    expected = [f"image {number}.txt" for number in range(5)]
    _expect(names == expected, f"files/: expected {expected}, found {names}")
    shown = _run([python, "-m", "capmix", "report", "--work", "w"], folder, expected=2)
    _expect("pip install 'capmix[report]'" in shown, "the report names its extra")


def _environment(folder: Path) -> str:
    venv.create(folder, with_pip=True)
    return str(folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python"))


def _run(command: list[str], folder: Path, expected: int = 0) -> str:
    shown = " ".join(command[1:])[:100].splitlines()[0]
    found = subprocess.run(command, cwd=folder, capture_output=True, text=True, encoding="utf-8")
    output = found.stdout + found.stderr
    print(f"{found.returncode}  {shown}", flush=True)
    _expect(found.returncode == expected and "Traceback" not in output, f"{shown}\n{output}")
    return output


def _only(found: object) -> Path:
    paths = list(found)  # type: ignore[call-overload]
    _expect(len(paths) == 1, f"expected one wheel of capmix, found {paths}")
    return Path(paths[0])


def _expect(holds: bool, what: str) -> None:
    if not holds:
        sys.exit(f"failed: {what}")


if __name__ == "__main__":
    main()

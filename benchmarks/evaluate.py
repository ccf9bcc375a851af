"""Time of ten zero-shot tasks with ViT-B-32 (random weights): capmix and CLIP_benchmark.

    python benchmarks/evaluate.py [IMAGES PER TASK]

Both run end to end from the shell: `clip_benchmark eval` once per task (float32, its own loader),
`capmix eval` once for all tasks. There are eight classification tasks with 12 classes and 4
templates, of which three share their classes (as ImageNet's shifts do) and two their images (as
CLEVR's tasks do), and two retrieval tasks with five captions per image. Exits with an error if the
metrics differ.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import open_clip
import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from evalsets import write_classification, write_retrieval

WORDS = ["apple", "table", "house", "dog", "cat", "tree", "river", "car"]
WORDS += ["street", "bird", "boat", "stone", "cloud", "door", "lamp", "chair"]
TEMPLATES = ["a photo of a {c}.", "a drawing of a {c}.", "a small {c}.", "one {c} in the sun."]
CLASSES = 12
BIN = Path(sys.executable).parent


def main() -> None:
    images = int(sys.argv[1]) if len(sys.argv) > 1 else 24
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        model = _write_model(folder / "model")
        tasks = _write_sets(folder / "sets", images)
        started = time.perf_counter()
        theirs = {name: _clip_benchmark(folder, model, name, kind) for name, kind in tasks.items()}
        their_seconds = time.perf_counter() - started
        started = time.perf_counter()
        ours = _capmix(folder, model, list(tasks))
        our_seconds = time.perf_counter() - started
        for name, metrics in theirs.items():
            for metric, value in metrics.items():
                if abs(ours[name][metric] - value) > 1e-6:
                    raise SystemExit(
                        f"{name}, {metric}: capmix {ours[name][metric]}, CLIP_benchmark {value}"
                    )
        print(f"clip_benchmark, task by task  {their_seconds:6.1f} s")
        print(f"capmix eval                   {our_seconds:6.1f} s")
        print(f"ratio                         {their_seconds / our_seconds:6.2f} x")


def _write_model(folder: Path) -> str:
    torch.manual_seed(0)
    model = open_clip.create_model("ViT-B-32")
    folder.mkdir()
    about = {
        "model_cfg": open_clip.get_model_config("ViT-B-32"),
        "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.25] * 3, "size": 224},
    }
    (folder / "open_clip_config.json").write_text(json.dumps(about))
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return f"local-dir:{folder}"


def _write_sets(root: Path, images: int) -> dict[str, str]:
    """Write the evaluation sets; return their names with the kind of each task."""
    tasks = {}
    for number in range(8):
        start = 0 if number < 3 else number
        classes = [
            f"{WORDS[(start + i) % 16]} {WORDS[(start + 5 * i) % 16]}" for i in range(CLASSES)
        ]
        first = 1000 * (3 if number == 4 else number)
        labels = [i % CLASSES for i in range(images)]
        write_classification(
            root / f"wds_task{number}_test", labels, classes, TEMPLATES, first_image=first
        )
        tasks[f"wds_task{number}_test"] = "zeroshot_classification"
    # CLIP_benchmark recognizes retrieval sets only by their names.
    for number, name in ((8, "wds_flickr30k_test"), (9, "wds_mscoco_captions_test")):
        captions = [
            [f"{WORDS[(i + j) % 16]} and {WORDS[(3 * i + j) % 16]} {i} {j}" for j in range(5)]
            for i in range(max(12, images // 2))
        ]
        write_retrieval(root / name, captions, first_image=1000 * number)
        tasks[name] = "zeroshot_retrieval"
    return tasks


def _clip_benchmark(folder: Path, model: str, name: str, kind: str) -> dict[str, float]:
    out = folder / f"{name}.json"
    command = [
        str(BIN / "clip_benchmark"), "eval",
        "--dataset", f"wds/{name.removeprefix('wds_').removesuffix('_test')}",
        "--dataset_root", str(folder / "sets" / name), "--model", model, "--pretrained", "",
        "--task", kind, "--recall_k", "1", "5", "10", "--no_amp", "--output", str(out),
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True)
    found: dict[str, float] = json.loads(out.read_text())["metrics"]
    return {metric: value for metric, value in found.items() if value == value}


def _capmix(folder: Path, model: str, names: list[str]) -> dict[str, dict[str, float]]:
    command = [str(BIN / "capmix"), "eval", model, "--evalsets", str(folder / "sets")]
    command += ["--tasks", ",".join(names), "--out", str(folder / "out")]
    subprocess.run(command, check=True, capture_output=True)
    lines = (folder / "out/eval_other_sets.jsonl").read_text().splitlines()
    return {line["key"]: line["metrics"] for line in map(json.loads, lines)}


if __name__ == "__main__":
    main()

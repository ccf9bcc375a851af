"""Speed up BLIP's vision tower: fused attention and small slices of the batch, or OpenVINO.

The mathematics are the same. transformers has no fused attention for BLIP. Without it, the
attention scores of each head are written to memory, which takes a third of the tower's time on a
CPU at 577 tokens. On a CPU, the activations of more than a few images also do not fit the cache
(benchmarks/caption.py).
"""

from types import MethodType
from typing import Any

from capmix.models.openvino_tower import OpenVinoTower

IMAGES_AT_ONCE = 4


def speed_up_blip(model: Any) -> None:
    """Patch the vision tower of this model instance. Models other than BLIP are not changed."""
    for module in model.modules():
        if type(module).__name__ == "BlipAttention" and hasattr(module, "qkv"):
            module.forward = MethodType(_attend, module)
        if type(module).__name__ == "BlipEncoder" and model.device.type == "cpu":
            module.forward = MethodType(_in_slices, module)


def run_blip_in_openvino(model: Any, name: str) -> None:
    """Replace BLIP's vision tower by one compiled in OpenVINO, in the dtype of the model.

    Raises UserError that begins with `name` if it cannot be compiled.
    """
    import torch
    from transformers.modeling_outputs import BaseModelOutputWithPooling

    class Vision(torch.nn.Module):
        def forward(self, pixel_values: Any, **_: Any) -> Any:
            states = [tower(one) for one in pixel_values.split(IMAGES_AT_ONCE)]
            return BaseModelOutputWithPooling(torch.cat(states).to(pixel_values.dtype))

    dtype = str(model.dtype).removeprefix("torch.")  # before the tower becomes float32
    vision = model.vision_model.float()
    side = vision.config.image_size
    pixels = torch.randn(3, 3, side, side, generator=torch.Generator().manual_seed(0))

    def states(pixel_values: Any) -> Any:
        return vision(pixel_values=pixel_values).last_hidden_state

    tower = OpenVinoTower(name, vision, states, [pixels[:2]], [pixels], dtype)
    model.vision_model = Vision()
    model.vision_model.tower = tower


def _attend(module: Any, hidden_states: Any, **_: Any) -> tuple[Any, None]:
    """Compute self-attention of states (N, T, D); None replaces the unused attention weights."""
    from torch.nn.functional import scaled_dot_product_attention

    images, tokens, width = hidden_states.shape
    qkv = module.qkv(hidden_states).view(images, tokens, 3, module.num_heads, -1)
    query, key, value = qkv.permute(2, 0, 3, 1, 4)
    mixed = scaled_dot_product_attention(query, key, value, scale=module.scale)
    return module.projection(mixed.transpose(1, 2).reshape(images, tokens, width)), None


def _in_slices(module: Any, inputs_embeds: Any, **_: Any) -> Any:
    """Encode states (N, T, D): run a few images through all layers, then the next few."""
    import torch
    from transformers.modeling_outputs import BaseModelOutput

    done = []
    for states in inputs_embeds.split(IMAGES_AT_ONCE):
        for layer in module.layers:
            states = layer(states)
        done.append(states)
    return BaseModelOutput(last_hidden_state=torch.cat(done))

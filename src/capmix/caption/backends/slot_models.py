"""Models for slots.py: the prompt of an image, and one further token for every slot.

Both compute what the model's own `generate` computes; the tests compare them token for token.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

Pair = tuple[Any, Any]  # keys and values of one layer, each (rows, heads, positions, D)
# Models of transformers that attend to image and text in one sequence with positions 0, 1, 2, ...
CAUSAL = ("blip-2", "llava", "smolvlm", "idefics3")


@dataclass(frozen=True)
class Prompted:
    """N prompts: logits (N, V) of the next token, and per layer what the attention keeps of them.

    `crossed` is what cross attention sees of the images; empty for models without it.
    """

    logits: Any
    past: list[Pair]
    crossed: list[Pair]

    @property
    def length(self) -> int:
        """Positions of a prompt."""
        return int(self.past[0][0].shape[2])

    @property
    def tensors(self) -> list[Any]:
        return [self.logits, *(one for pair in [*self.past, *self.crossed] for one in pair)]


class SlotCache:
    """Keys and values of S captions in fixed memory, (S, heads, `length`, D) per layer.

    In the protocol of transformers' caches. Row s of a new key or value goes to position
    `positions[s]`; a row attends to the positions up to this one.
    """

    is_compileable = True

    def __init__(self, like: Prompted, slots: int, length: int):
        self.past = [_empty(pair, slots, length) for pair in like.past]
        self.crossed = [_empty(pair, slots, pair[0].shape[2]) for pair in like.crossed]
        device = like.logits.device
        self.length = length
        self._rows, self._columns = _range(slots, device), _range(length, device)
        self.positions = self._rows * 0
        self.narrow(slots, length)

    def narrow(self, rows: int, reach: int) -> None:
        """Let the next steps compute only the first `rows` rows and `reach` positions."""
        self._used, self._reach = slice(rows), slice(reach)

    def put(self, rows: Any, like: Prompted, sources: Any) -> None:
        """Copy the prompts `sources` (int64) into the slots `rows` (int64)."""
        for kept, new in zip(self.past, like.past, strict=True):
            for whole, part in zip(kept, new, strict=True):
                whole[rows, :, : part.shape[2]] = part[sources]
        for kept, new in zip(self.crossed, like.crossed, strict=True):
            for whole, part in zip(kept, new, strict=True):
                whole[rows] = part[sources]

    def mask(self) -> Any:
        """Return which positions each row attends to, bool (S, 1, 1, positions)."""
        seen = self._columns[self._reach] <= self.used_positions.unsqueeze(1)
        return seen[:, None, None]

    @property
    def used_positions(self) -> Any:
        """The positions of the next tokens, int64 (rows,)."""
        return self.positions[self._used]

    def crossed_of(self, layer: int) -> Pair:
        keys, values = self.crossed[layer]
        return keys[self._used], values[self._used]

    def update(self, keys: Any, values: Any, layer: int, *_: Any, **__: Any) -> Pair:
        """Store keys and values (S, heads, 1, D) of a layer; return all that can be seen."""
        whole_keys, whole_values = self.past[layer]
        where = self._rows[self._used], slice(None), self.used_positions
        whole_keys[where] = keys[:, :, 0]
        whole_values[where] = values[:, :, 0]
        seen = self._used, slice(None), self._reach
        return whole_keys[seen], whole_values[seen]

    def get_seq_length(self, *_: Any) -> int:
        return 0  # the positions and the mask are passed to the model


class SlotModel(Protocol):
    """A model that can run in slots."""

    def prompt(self, inputs: dict[str, Any]) -> Prompted:
        """Run the prompts and images of one collated batch."""
        ...

    def step(self, tokens: Any, cache: SlotCache) -> Any:
        """Return the logits (S, V) after `tokens`, int64 (S,), at the cache's positions."""
        ...


def slot_model(model: Any) -> SlotModel | None:
    """Return the model for slots; None if its architecture is not supported."""
    kind, config = model.config.model_type, model.config
    text = config.get_text_config()
    layers = set(getattr(text, "layer_types", None) or ["full_attention"])
    if kind == "blip":
        return BlipSlots(model)
    is_decoder = not text.is_encoder_decoder and layers == {"full_attention"}
    return CausalSlots(model) if kind in CAUSAL and is_decoder else None


class CausalSlots:
    """A model whose decoder sees image and text in one sequence; runs the model's own layers."""

    def __init__(self, model: Any):
        self._model, self._config = model, model.config
        self._decoder = model.language_model if self._is_blip2 else model
        self._cache = _cache_name(self._decoder.forward)

    @property
    def _is_blip2(self) -> bool:
        return bool(self._config.model_type == "blip-2")

    def prompt(self, inputs: dict[str, Any]) -> Prompted:
        if self._is_blip2 and "input_ids" not in inputs:
            inputs = inputs | {"input_ids": self._blip2_start(inputs["pixel_values"])}
        out = self._model(**inputs, use_cache=True, logits_to_keep=1)
        out = getattr(out, "language_model_outputs", None) or out
        layers = getattr(out, "cache", None) or out.past_key_values
        past = [(layer.keys, layer.values) for layer in layers.layers]
        return Prompted(out.logits[:, -1], past, [])

    def step(self, tokens: Any, cache: SlotCache) -> Any:
        out = self._decoder(
            input_ids=tokens.unsqueeze(1),
            attention_mask=cache.mask(),
            position_ids=cache.used_positions.unsqueeze(1),
            use_cache=True,
            **{self._cache: cache},
        )
        return out.logits[:, -1]

    def _blip2_start(self, pixels: Any) -> Any:
        """Return the tokens before a caption without a prompt, as in BLIP-2's `generate`."""
        import torch

        config = self._config
        tokens = [config.image_token_index] * config.num_query_tokens
        start = torch.tensor([[*tokens, config.text_config.bos_token_id]], device=pixels.device)
        return start.expand(len(pixels), -1)


class BlipSlots:
    """BLIP, whose decoder sees the image by cross attention.

    The step uses fused attention, which transformers lacks for BLIP.
    """

    def __init__(self, model: Any):
        self._model, self._decoder = model, model.text_decoder
        self._config = model.config.text_config

    def prompt(self, inputs: dict[str, Any]) -> Prompted:
        import torch

        patches = self._model.vision_model(pixel_values=inputs["pixel_values"])[0]
        start = torch.full((len(patches), 1), self._config.bos_token_id, device=patches.device)
        if "input_ids" in inputs:  # [CLS] prompt [SEP]; BLIP starts with its own token
            start = torch.cat([start, inputs["input_ids"][:, 1:-1]], 1)
        out = self._decoder(
            input_ids=start, encoder_hidden_states=patches, use_cache=True, logits_to_keep=1
        )
        both = getattr(out, "cache", None) or out.past_key_values
        past = [(layer.keys, layer.values) for layer in both.self_attention_cache.layers]
        crossed = [(layer.keys, layer.values) for layer in both.cross_attention_cache.layers]
        return Prompted(out.logits[:, -1], past, crossed)

    def step(self, tokens: Any, cache: SlotCache) -> Any:
        body, mask = self._decoder.bert, cache.mask()
        states = body.embeddings(tokens.unsqueeze(1), cache.used_positions.unsqueeze(1))
        for number, layer in enumerate(body.encoder.layer):
            inner = layer.attention.self
            new = _heads(inner.key(states), inner), _heads(inner.value(states), inner)
            states = _attended(layer.attention, states, cache.update(*new, number), mask)
            states = _attended(layer.crossattention, states, cache.crossed_of(number), None)
            states = layer.feed_forward_chunk(states)
        return self._decoder.cls(states)[:, 0]


def _attended(attention: Any, states: Any, pair: Pair, mask: Any) -> Any:
    """Apply BLIP's attention, states (S, 1, width), to keys and values."""
    from torch.nn.functional import scaled_dot_product_attention

    query = _heads(attention.self.query(states), attention.self)
    mixed = scaled_dot_product_attention(query, *pair, attn_mask=mask)
    return attention.output(mixed.transpose(1, 2).flatten(2), states)


def _heads(states: Any, attention: Any) -> Any:
    shape = (*states.shape[:2], attention.num_attention_heads, attention.attention_head_size)
    return states.view(shape).transpose(1, 2)


def _empty(pair: Pair, slots: int, length: int) -> Pair:
    keys, values = (one.new_zeros(slots, one.shape[1], length, one.shape[3]) for one in pair)
    return keys, values


def _range(count: int, device: Any) -> Any:
    import torch

    return torch.arange(count, device=device)


def _cache_name(forward: Callable[..., Any]) -> str:
    """Return the parameter of the cache: transformers 5.2x renamed `past_key_values`."""
    return "cache" if "cache" in inspect.signature(forward).parameters else "past_key_values"

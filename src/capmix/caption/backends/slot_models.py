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
# Models whose positions count an image by its sides (M-RoPE): later ones are shifted.
SHIFTED = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")


@dataclass(frozen=True)
class Prompted:
    """N prompts: logits (N, V) of the next token, and per layer what the attention keeps of them.

    `image` is what cross attention sees, (N, patches, D); None for models without it. `shift` is
    what to add to the positions of later tokens, int64 (N,); None for nothing.
    """

    logits: Any
    past: list[Pair]
    image: Any = None
    shift: Any = None

    @property
    def length(self) -> int:
        """Positions of a prompt."""
        return int(self.past[0][0].shape[2])

    def bytes_per_row(self, length: int) -> int:
        """Bytes of one prompt and its caption with room for `length` positions."""
        past: int = sum(one.nbytes for pair in self.past for one in pair) // self.length * length
        image: int = 0 if self.image is None else self.image.nbytes
        return (past + image) // len(self.logits)

    @property
    def tensors(self) -> list[Any]:
        known = [self.logits, self.image, self.shift, *(one for pair in self.past for one in pair)]
        return [one for one in known if one is not None]


class SlotCache:
    """Keys and values of S captions in fixed memory, (S, heads, `length`, D) per layer.

    In the protocol of transformers' caches. Row s of a new key or value goes to position
    `positions[s]`; a row attends to the positions up to this one.
    """

    is_compileable = True

    def __init__(self, like: Prompted, slots: int, length: int):
        self.past = [_empty(pair, slots, length) for pair in like.past]
        self.image, device = None, like.logits.device
        if like.image is not None:
            self.image = like.image.new_zeros(slots, *like.image.shape[1:])
        self.length = length
        self._rows, self._columns = _range(slots, device), _range(length, device)
        self.positions, self.shift = self._rows * 0, self._rows * 0
        self.narrow(slots, length)

    def narrow(self, rows: int, reach: int) -> None:
        """Let the next steps compute only the first `rows` rows and `reach` positions."""
        self._used, self._reach = slice(rows), slice(reach)

    def put(self, rows: Any, like: Prompted, sources: Any) -> None:
        """Copy the prompts `sources` (int64) into the slots `rows` (int64)."""
        for kept, new in zip(self.past, like.past, strict=True):
            for whole, part in zip(kept, new, strict=True):
                whole[rows, :, : part.shape[2]] = part[sources]
        if self.image is not None:
            self.image[rows] = like.image[sources]
        if like.shift is not None:
            self.shift[rows] = like.shift[sources]

    def mask(self) -> Any:
        """Return which positions each row attends to, bool (S, 1, 1, positions)."""
        seen = self._columns[self._reach] <= self.used_positions.unsqueeze(1)
        return seen[:, None, None]

    @property
    def used_positions(self) -> Any:
        """The positions of the next tokens, int64 (rows,)."""
        return self.positions[self._used]

    @property
    def used_shift(self) -> Any:
        return self.shift[self._used]

    @property
    def used_image(self) -> Any:
        """What cross attention sees, (rows, patches, D)."""
        assert self.image is not None
        return self.image[self._used]

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
    if model.config.model_type == "blip":
        return BlipSlots(model)
    text = model.config.get_text_config()
    is_known = model.config.model_type in (*CAUSAL, *SHIFTED) and not text.is_encoder_decoder
    return CausalSlots(model) if is_known and _sees_all(text) else None


def _sees_all(text: Any) -> bool:
    """Return whether all layers of a text model attend to all positions that the mask allows.

    Eager attention adds the mask instead, and layers with a window have a cache of another kind.
    """
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    if text._attn_implementation != "sdpa":
        return False
    has_window = getattr(text, "sliding_window", None) is not None
    if has_window and getattr(text, "use_sliding_window", True):
        return False
    return all(type(layer) is DynamicLayer for layer in DynamicCache(config=text).layers)


class CausalSlots:
    """A model whose decoder sees image and text in one sequence; runs the model's own layers."""

    def __init__(self, model: Any):
        self._model, self._config = model, model.config
        self._decoder = model.language_model if self._is_blip2 else model
        self._cache = _cache_name(self._decoder.forward)
        self._is_shifted = self._config.model_type in SHIFTED

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
        shift = self._model.model.rope_deltas.flatten() if self._is_shifted else None
        return Prompted(out.logits[:, -1], past, shift=shift)

    def step(self, tokens: Any, cache: SlotCache) -> Any:
        out = self._decoder(
            input_ids=tokens.unsqueeze(1),
            attention_mask=cache.mask(),
            position_ids=self._positions(cache),
            use_cache=True,
            **{self._cache: cache},
        )
        return out.logits[:, -1]

    def _positions(self, cache: SlotCache) -> Any:
        if not self._is_shifted:
            return cache.used_positions.unsqueeze(1)
        shifted = cache.used_positions + cache.used_shift
        return shifted.view(1, -1, 1).expand(3, -1, -1)  # time, height and width

    def _blip2_start(self, pixels: Any) -> Any:
        """Return the tokens before a caption without a prompt, as in BLIP-2's `generate`."""
        import torch

        config = self._config
        tokens = [config.image_token_index] * config.num_query_tokens
        start = torch.tensor([[*tokens, config.text_config.bos_token_id]], device=pixels.device)
        return start.expand(len(pixels), -1)


class BlipSlots:
    """BLIP, whose decoder sees the image by cross attention.

    The keys and values of an image in all layers would be 24 times as large as its patches, and to
    compute them costs as much as 60 tokens. The step applies their weights to the queries and to
    the mixed patches instead: q (W p) = (q W) p.
    """

    def __init__(self, model: Any):
        self._model, self._decoder = model, model.text_decoder
        self._config = model.config.text_config

    def prompt(self, inputs: dict[str, Any]) -> Prompted:
        import torch

        patches = self._model.vision_model(pixel_values=inputs["pixel_values"])[0]
        count, layers = len(patches), self._decoder.bert.encoder.layer
        tokens = torch.full((count, 1), self._config.bos_token_id, device=patches.device)
        if "input_ids" in inputs:  # [CLS] prompt [SEP]; BLIP starts with its own token
            tokens = torch.cat([tokens, inputs["input_ids"][:, 1:-1]], 1)
        inner = layers[0].attention.self
        one = patches.new_empty(1, inner.num_attention_heads, 1, inner.attention_head_size)
        cache = SlotCache(Prompted(patches, [(one, one)] * len(layers)), count, tokens.shape[1])
        cache.image = patches
        for column in range(tokens.shape[1]):
            cache.positions.fill_(column)
            logits = self.step(tokens[:, column], cache)
        return Prompted(logits, cache.past, patches)

    def step(self, tokens: Any, cache: SlotCache) -> Any:
        from torch.nn.functional import scaled_dot_product_attention

        body, mask = self._decoder.bert, cache.mask()
        states = body.embeddings(tokens.unsqueeze(1), cache.used_positions.unsqueeze(1))
        for number, layer in enumerate(body.encoder.layer):
            own = layer.attention.self
            query, key, value = (
                _heads(one(states), own) for one in (own.query, own.key, own.value)
            )
            pair = cache.update(key, value, number)
            mixed = scaled_dot_product_attention(query, *pair, attn_mask=mask)
            states = layer.attention.output(mixed.transpose(1, 2).flatten(2), states)
            cross = layer.crossattention
            states = cross.output(_crossed(cross.self, states, cache.used_image), states)
            states = layer.feed_forward_chunk(states)
        return self._decoder.cls(states)[:, 0]


def _crossed(attention: Any, states: Any, patches: Any) -> Any:
    """Attend to patches (S, P, D) from states (S, 1, width); returns (S, 1, width).

    The bias of the keys adds the same to all scores of a head, which softmax ignores. The weights
    of a head sum to 1, so that the bias of the values is added once.
    """
    heads, size = attention.num_attention_heads, attention.attention_head_size
    query = attention.query(states).view(-1, heads, size).transpose(0, 1)  # (heads, S, size)
    keys = attention.key.weight.view(heads, size, -1)
    scores = (query @ keys).transpose(0, 1) @ patches.transpose(1, 2)  # (S, heads, P)
    mixed = (scores * size**-0.5).softmax(-1) @ patches  # (S, heads, D)
    values = attention.value.weight.view(heads, size, -1)
    found = mixed.transpose(0, 1) @ values.transpose(1, 2)  # (heads, S, size)
    return found.transpose(0, 1).flatten(1).unsqueeze(1) + attention.value.bias


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

"""The text side of open_clip's CoCa with a key-value cache, one token at a time.

For each new token, open_clip runs both text transformers over the whole prefix and recomputes the
projections of the image tokens in every layer. Here keys and values are cached. The tests check
that the logits equal open_clip's.
"""

from typing import Any


class CocaDecoder:
    """Next-token logits for N x K captions of N images.

    `patches` are the image tokens (N, P, D); caption k of image n is row n * K + k.
    """

    def __init__(self, model: Any, patches: Any, captions_per_image: int):
        self._text, self._decoder = model.text, model.text_decoder
        self._past: dict[Any, tuple[Any, ...]] = {}
        self._crossed = {}
        for block in self._decoder.cross_attn:
            keys, values = _projected(block.attn, block.ln_1_kv(patches), 1, 3)
            self._crossed[block] = tuple(
                one.repeat_interleave(captions_per_image, 0) for one in (keys, values)
            )
        self._tokens: list[Any] = []

    def logits(self, tokens: Any) -> Any:
        """Return next-token logits (N x K, V) after the last drawn `tokens`, int64 (N x K,)."""
        text = self._text
        self._tokens.append(tokens)
        states = text.token_embedding(tokens).to(text.transformer.get_cast_dtype())
        states = states + text.positional_embedding[len(self._tokens) - 1].to(states.dtype)
        states = states.unsqueeze(1)
        seen = self._seen()
        for block in text.transformer.resblocks:
            states = self._attend(block, states, seen)
        if text.cls_emb is None:
            states = text.ln_final(states)
        for block, cross in zip(self._decoder.resblocks, self._decoder.cross_attn, strict=True):
            states = self._attend(block, states, None)
            states = _layer(cross, states, self._crossed[cross], None)
        return (self._decoder.ln_final(states) @ self._decoder.text_projection)[:, 0]

    def _attend(self, block: Any, states: Any, seen: Any) -> Any:
        import torch

        new = _projected(block.attn, block.ln_1(states), 1, 3)
        if block in self._past:
            pairs = zip(self._past[block], new, strict=True)
            new = tuple(torch.cat(pair, 2) for pair in pairs)
        self._past[block] = new
        return _layer(block, states, new, seen)

    def _seen(self) -> Any:
        """Return the positions the text transformer attends to, bool (N x K, 1, 1, T); None = all.

        It masks the pad token, which is also a word ("!"). The published weights were trained with
        this mask shifted by one position (open_clip: correct_cls_mask), so the shift is reproduced.
        """
        import torch

        if self._text.cls_emb is None:
            return None
        seen = torch.stack(self._tokens, 1) != self._text.pad_id
        if not self._text.correct_cls_mask:
            seen = torch.cat([torch.ones_like(seen[:, :1]), seen[:, :-1]], 1)
        return seen[:, None, None]


def _layer(block: Any, states: Any, past: tuple[Any, ...], seen: Any) -> Any:
    """Apply open_clip's ResidualAttentionBlock to one new position, states (N, 1, D)."""
    from torch.nn.functional import scaled_dot_product_attention

    (query,) = _projected(block.attn, block.ln_1(states), 0, 1)
    keys, values = past
    mixed = scaled_dot_product_attention(query, keys, values, attn_mask=seen)
    mixed = block.attn.out_proj(mixed.transpose(1, 2).flatten(2))
    states = states + block.ls_1(mixed)
    return states + block.ls_2(block.mlp(block.ln_2(states)))


def _projected(attention: Any, states: Any, first: int, last: int) -> tuple[Any, ...]:
    """Project states (N, T, D) to a range of query, key and value (0, 1, 2).

    Each is (N, heads, T, D / heads).
    """
    from torch.nn.functional import linear

    width = attention.embed_dim
    rows = slice(first * width, last * width)
    joined = linear(states, attention.in_proj_weight[rows], attention.in_proj_bias[rows])
    parts = joined.view(*joined.shape[:2], last - first, attention.num_heads, -1)
    return tuple(part.transpose(1, 2) for part in parts.unbind(2))

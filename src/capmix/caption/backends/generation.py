"""What the generation config of a transformers model decides about its captions.

It names the tokens that end a caption and may change logits: penalties for repetition, forced and
suppressed tokens. capmix follows both, so that greedy captions equal those of `generate`. Lengths,
beams and sampling come from capmix's own settings.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from capmix.caption.captioner import Caption
from capmix.caption.sampling import NAN_LOGITS, draw_tokens
from capmix.caption.settings import CaptionSettings

# Fields that change logits, with the value that changes nothing; for the others this is None.
NEUTRAL = {
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "encoder_repetition_penalty": 1.0,
    "encoder_no_repeat_ngram_size": 0,
}
RULES = (
    *NEUTRAL,
    "forced_bos_token_id",
    "forced_eos_token_id",
    "suppress_tokens",
    "begin_suppress_tokens",
    "bad_words_ids",
    "sequence_bias",
    "exponential_decay_length_penalty",
)
KEPT = ("pad_token_id", "bos_token_id", "decoder_start_token_id")


@dataclass(frozen=True)
class GenerationRules:
    """Tokens that end a caption, sorted, and the fields of RULES that change logits."""

    ends: tuple[int, ...]
    logits: dict[str, Any] = field(default_factory=dict)


def generation_rules(model: Any, tokenizer: Any, plain: bool = False) -> GenerationRules:
    """Return the rules of a model, and make its `generate` follow only these.

    With `plain`, no rule changes logits. The end tokens are those of the config that `generate`
    uses; if it names none, those of the model's own generation config, its text config or its
    tokenizer, in this order.
    """
    inner = _generating(model)
    config = inner.generation_config
    rules = GenerationRules(_ends(model, config, tokenizer), {} if plain else _logits_rules(config))
    kept = {name: getattr(config, name, None) for name in KEPT}
    inner.generation_config = type(config)(
        eos_token_id=list(rules.ends) or None, **kept, **rules.logits
    )
    return rules


def _generating(model: Any) -> Any:
    """Return the module whose `generate` runs: a part of the model if the model has its own."""
    from transformers import GenerationMixin

    if type(model).generate is GenerationMixin.generate:
        return model
    inner = [child for child in model.children() if isinstance(child, GenerationMixin)]
    return inner[0] if inner else model


def _ends(model: Any, config: Any, tokenizer: Any) -> tuple[int, ...]:
    text: Any = getattr(model.config, "text_config", None)
    if model.config.model_type == "blip":  # its `generate` passes this token
        return (int(text.sep_token_id),)
    own = getattr(model, "generation_config", None)
    return tuple(end_tokens(config, own, text, tokenizer))


def end_tokens(*configs: Any) -> list[int]:
    """Return the end tokens, sorted, of the first of the configs or tokenizers that names any."""
    for config in configs:
        value = getattr(config, "eos_token_id", None)
        if value is not None and value != []:
            values = value if isinstance(value, list | tuple) else [value]
            return sorted({int(one) for one in values})
    return []


def _logits_rules(config: Any) -> dict[str, Any]:
    found = {}
    for name in RULES:
        value = getattr(config, name, None)
        if value is not None and value != NEUTRAL.get(name):
            found[name] = value
    return found


def text_positions(config: Any) -> int | None:
    """Return the number of positions of a text model; None if it is unlimited or unknown."""
    found = getattr(config.get_text_config(), "max_position_embeddings", None)
    return found if isinstance(found, int) and found > 0 else None


def generate(
    model: Any,
    tokenizer: Any,
    inputs: Mapping[str, Any],
    keys: Any,
    wanted: CaptionSettings,
    rules: GenerationRules,
    **options: Any,
) -> list[Caption]:
    """Return a caption per row of the inputs, drawn with `keys`, with the model's `generate`.

    Raises ValueError for NaN logits.
    """
    import torch

    draw = TokenDraw(keys, wanted, rules)
    with torch.inference_mode():
        model.generate(
            **inputs,
            do_sample=False,
            num_beams=1,
            max_new_tokens=wanted.max_tokens,
            logits_processor=[draw],
            **options,
        )
    if bool(draw.is_nan.any()):
        raise ValueError(NAN_LOGITS)
    # On a GPU, `generate` may run one step too many before it stops.
    drawn = torch.stack(draw.drawn[: wanted.max_tokens], 1)
    return [decoded(tokenizer, row, rules.ends) for row in drawn.tolist()]


def decoded(tokenizer: Any, tokens: list[int], ends: Sequence[int]) -> Caption:
    """Return the caption that tokens spell, up to the first of the end tokens."""
    end = next((i for i, token in enumerate(tokens) if token in ends), None)
    text = tokenizer.decode(tokens[:end], skip_special_tokens=True).strip()
    return Caption(text, "length" if end is None else "stop")


class TokenDraw:
    """A logits processor that draws tokens as in sampling.py, masks all others and records them.

    End tokens are masked until the caption has `min_tokens` tokens. Nothing here waits for the GPU;
    `is_nan` tells, after the last step, which rows had NaN logits.
    """

    def __init__(self, keys: Any, wanted: CaptionSettings, rules: GenerationRules):
        import torch

        self.keys, self.wanted = keys, wanted
        self.drawn: list[Any] = []
        self.is_nan = torch.zeros(len(keys), dtype=torch.bool, device=keys.device)
        self._ends = torch.tensor(rules.ends, dtype=torch.int64, device=keys.device)
        forced = "forced_eos_token_id" in rules.logits  # must not be masked at the last step
        self._least = min(wanted.min_tokens, wanted.max_tokens - int(forced))
        self._left: Any = None

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        step = len(self.drawn)
        if step < self._least:
            scores.index_fill_(1, self._ends, float("-inf"))
        tokens, is_nan = draw_tokens(scores.float(), self.keys, step, self.wanted)
        self.is_nan |= is_nan
        if self._left is None:
            self._left = scores.new_full(scores.shape, float("-inf"))
        else:  # one allocation of (N, V) for all steps
            self._left.scatter_(1, self.drawn[-1].unsqueeze(1), float("-inf"))
        self.drawn.append(tokens)
        return self._left.scatter_(1, tokens.unsqueeze(1), 0.0)

"""Write small random text models of real architectures, in the format of the published models."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tiny_models import WORDS, small_tokenizer
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    M2M100Config,
    M2M100ForConditionalGeneration,
    NllbTokenizer,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

CHAT = (
    "{% for m in messages %}<|{{ m['role'] }}|> {{ m['content'] }} </s>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
SIZES |= {"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 256}
ENDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def llama(folder: Path, chat: bool = False) -> Path:
    """A causal model; with `chat`, its tokenizer has a chat template."""
    tokenizer = _words(["<|user|>", "<|assistant|>"]) if chat else small_tokenizer()
    if chat:
        tokenizer.chat_template = CHAT
    config = LlamaConfig(vocab_size=len(tokenizer), **SIZES, **ENDS)
    return _save(folder, LlamaForCausalLM(config), tokenizer)


def chat(folder: Path) -> Path:
    return llama(folder, chat=True)


def gpt2(folder: Path) -> Path:
    """A causal model with learned positions."""
    tokenizer = small_tokenizer()
    config = GPT2Config(vocab_size=len(tokenizer), n_positions=128, n_embd=32, n_layer=2, n_head=2)
    config.bos_token_id, config.eos_token_id, config.pad_token_id = 1, 2, 0
    return _save(folder, GPT2LMHeadModel(config), tokenizer)


def t5(folder: Path) -> Path:
    """A sequence-to-sequence model without languages."""
    tokenizer = _words([])
    tokenizer._tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 2)]
    )
    config = T5Config(
        vocab_size=len(tokenizer), d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2,
        decoder_start_token_id=0, pad_token_id=0, eos_token_id=2,
    )  # fmt: skip
    return _save(folder, T5ForConditionalGeneration(config), tokenizer)


def nllb(folder: Path) -> Path:
    """A translation model with the tokenizer and the language tokens of NLLB."""
    vocabulary = {one: i for i, one in enumerate(["<s>", "<pad>", "</s>", "<unk>"])}
    for word in dict.fromkeys(WORDS.split()):
        vocabulary[f"\u2581{word}"] = len(vocabulary)
    for letter in "abcdefghijklmnopqrstuvwxyz\u2581":
        vocabulary[letter] = len(vocabulary)
    tokenizer = NllbTokenizer(vocab=vocabulary, merges=[])
    config = M2M100Config(
        vocab_size=len(tokenizer), d_model=32, encoder_layers=2, decoder_layers=2,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=64,
        decoder_ffn_dim=64, max_position_embeddings=128, decoder_start_token_id=2,
        pad_token_id=1, bos_token_id=0, eos_token_id=2,
    )  # fmt: skip
    words = set(vocabulary.values())
    quiet = [one for one in tokenizer.get_vocab().values() if one not in words]
    return _save(folder, M2M100ForConditionalGeneration(config), tokenizer, quiet)


CAUSAL = {"llama": llama, "chat": chat, "gpt2": gpt2}
ENCODING = {"t5": t5, "nllb": nllb}
BUILDERS = CAUSAL | ENCODING


def _words(more: list[str]) -> PreTrainedTokenizerFast:
    """Return a tokenizer whose tokens are words."""
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = ["<pad>", "<s>", "</s>", "<unk>", *more]
    tokenizer.train_from_iterator([WORDS], trainers.WordLevelTrainer(special_tokens=special))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=more,
    )


def _save(folder: Path, model: Any, tokenizer: Any, quiet: Sequence[int] = ()) -> Path:
    """Save a model with random weights. It does not write the tokens `quiet`."""
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        # A wider initialization than usual, so that texts differ between inputs.
        if "norm" not in name and "ln_" not in name:
            parameter.data = torch.randn_like(parameter) * 0.3
    with torch.no_grad():
        model.get_input_embeddings().weight[list(quiet)] *= 0.01
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder

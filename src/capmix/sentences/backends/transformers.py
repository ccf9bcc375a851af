"""Sentence-transformers models through transformers, from a local folder or a Hub id.

The vector is the mean of the last layer's states over the tokens of the text, or the state of its
first token, with length 1. Which one, and the longest input, are read from the model's own files
(modules.json, sentence_bert_config.json, 1_Pooling/config.json), as sentence-transformers does. A
folder without them has the mean. No code of the model's repository is run, and weights are read
from safetensors files only.
"""

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from capmix.errors import UserError
from capmix.models.device import device_and_dtype, fingerprint, provenance
from capmix.models.hub import check_hub
from capmix.models.image_pass import unit
from capmix.models.tokens import Tokens, encode_truncated
from capmix.models.transformers_loading import load_complete, loading
from capmix.sentences.encoder import EncoderSettings
from capmix.storage.json_text import parse_json

PACKAGES = ("torch", "transformers")
PREFIX = "transformers:"
LONGEST = 8192  # tokens; tokenizers without a limit report 1e30
MAX_JSON = 1 << 20  # bytes
MODULES, POOLING = "modules.json", "1_Pooling/config.json"
LENGTH = "sentence_bert_config.json"
UNUSED = ("pooler.",)  # BERT's own layer after the last states
KNOWN_MODULES = {"Transformer", "Pooling", "Normalize"}
MODE = "pooling_mode_"
MEAN, FIRST = f"{MODE}mean_tokens", f"{MODE}cls_token"


class TransformersSentences:
    """Encodes sentences in float32. Raises UserError if the model cannot be loaded."""

    extra: ClassVar[str | None] = "transformers"
    packages: ClassVar[tuple[str, ...]] = PACKAGES
    device: ClassVar[str] = "gpu"
    options: ClassVar[tuple[str, ...]] = ("prefix", "revision")

    def __init__(self, settings: EncoderSettings):
        self._what = f"sentence encoder {settings.model}"
        model = settings.model.removeprefix(PREFIX)
        offline = check_hub(model, self._what, settings.revision)
        self._device, _ = device_and_dtype(settings.device, "float32")
        where = {"revision": settings.revision, "local_files_only": offline}
        self._tokenizer, self._model = self._load(model, where)
        files = _Files(self._what, model, where)
        self._takes_first = _takes_first(self._what, files)
        self._length = _length(files.read(LENGTH), self._tokenizer, self._model.config)
        self._prefix, self._batch = settings.prefix, settings.batch
        self._lock = threading.Lock()
        self.settings: dict[str, Any] = {
            "model": model,
            "weights": fingerprint(model),
            "revision": getattr(self._model.config, "_commit_hash", None),
            "prefix": settings.prefix,
            "pooling": "first" if self._takes_first else "mean",
            "length": self._length,
        }
        self.provenance = provenance(PACKAGES, self._device, settings.batch)

    def tokenize(self, texts: Sequence[str]) -> Tokens:
        """Run the model's tokenizer on the prefixed texts, truncated to the model's length."""
        prefixed = [f"{self._prefix}{text}" for text in texts]
        with self._lock:
            rows, truncated = encode_truncated(self._tokenizer, prefixed, self._length)
        of_texts = zip(*rows.values(), strict=True)
        return Tokens([dict(zip(rows, one, strict=True)) for one in of_texts], truncated)

    def encode_tokens(self, inputs: Sequence[Mapping[str, list[int]]]) -> np.ndarray:
        """Return unit vectors, float32 (N, D), of N >= 1 texts' outputs of the tokenizer."""
        # Texts of similar length share a batch, which has little padding then.
        order = sorted(range(len(inputs)), key=lambda i: len(inputs[i]["input_ids"]))
        found: np.ndarray | None = None
        for start in range(0, len(order), self._batch):
            numbers = order[start : start + self._batch]
            vectors = self._encode([inputs[i] for i in numbers])
            if found is None:
                found = np.empty((len(inputs), vectors.shape[1]), np.float32)
            found[numbers] = vectors
        assert found is not None
        return unit(found)

    def _encode(self, some: Sequence[Mapping[str, list[int]]]) -> np.ndarray:
        import torch

        padded = self._tokenizer.pad(some, return_tensors="pt").to(self._device)
        with torch.inference_mode():
            states = self._model(**padded).last_hidden_state
            if self._takes_first:
                pooled = states[:, 0]
            else:
                mask = padded["attention_mask"].unsqueeze(-1).to(states.dtype)
                pooled = (states * mask).sum(1) / mask.sum(1).clamp(min=1e-9)
        return np.asarray(pooled.float().cpu().numpy())

    def _load(self, model: str, where: Mapping[str, Any]) -> tuple[Any, Any]:
        import torch
        from transformers import AutoModel, AutoTokenizer

        with loading(self._what):
            tokenizer: Any = AutoTokenizer.from_pretrained(model, trust_remote_code=False, **where)
            options = {"trust_remote_code": False, "dtype": torch.float32, **where}
            loaded = load_complete(AutoModel, model, self._what, options, UNUSED)
            loaded.to(self._device).eval()
        # Texts are tokenized ahead and padded later, against the advice that `pad` logs once.
        tokenizer.deprecation_warnings["Asking-to-pad-a-fast-tokenizer"] = True
        if getattr(loaded.config, "is_encoder_decoder", False):
            raise UserError(
                f"{self._what}: {loaded.config.model_type} models have a decoder; expected an "
                "encoder such as sentence-transformers/all-MiniLM-L6-v2"
            )
        return tokenizer, loaded


class _Files:
    """The JSON files of a model, from its folder or the Hub's cache."""

    def __init__(self, what: str, model: str, where: Mapping[str, Any]):
        self._what, self._model, self._where = what, model, where

    def read(self, name: str) -> Any:
        """Return the file's value; None if there is no such file. Raises UserError if it is
        damaged."""
        from transformers.utils.hub import cached_file

        try:
            path = cached_file(
                self._model, name, _raise_exceptions_for_missing_entries=False, **self._where
            )
            if path is None:
                return None
            with Path(path).open("rb") as stream:
                data = stream.read(MAX_JSON + 1)
            if len(data) > MAX_JSON:
                raise ValueError(f"larger than {MAX_JSON >> 20} MiB")
            return parse_json(data)
        except (OSError, ValueError) as error:
            first = " ".join(str(error).split())[:300]
            raise UserError(f"{self._what}: {name}: {first}") from error


def _takes_first(what: str, files: _Files) -> bool:
    """Return whether the first token is the text's vector, and not the mean of all tokens.

    Raises UserError if the model needs other steps than these.
    """
    modules = files.read(MODULES)
    listed = modules if isinstance(modules, list) else []
    kinds = [str(one.get("type", "")) for one in listed if isinstance(one, dict)]
    others = sorted({kind.rpartition(".")[2] for kind in kinds} - KNOWN_MODULES)
    if others:
        raise UserError(f"{what}: its module {others[0]!r} is not supported; use another model")
    pooling = files.read(POOLING)
    if not isinstance(pooling, dict):
        return False
    modes = sorted(
        name for name, value in pooling.items() if name.startswith(MODE) and value is True
    )
    if modes not in ([MEAN], [FIRST]):
        shown = ", ".join(one.removeprefix(MODE)[:40] for one in modes) or "none"
        raise UserError(f"{what}: pooling {shown} is not supported; expected mean or cls")
    return modes == [FIRST]


def _length(about: Any, tokenizer: Any, config: Any) -> int:
    """Return the longest input in tokens: the least of the limits that the model's files state."""
    given = about.get("max_seq_length") if isinstance(about, dict) else None
    limits = [given, tokenizer.model_max_length, getattr(config, "max_position_embeddings", None)]
    known = [
        one for one in limits if isinstance(one, int) and not isinstance(one, bool) and one > 2
    ]
    return min([*known, LONGEST])

"""Architectures of open_clip that a .json config file describes.

Configs are untrusted: only the tokenizer options of TOKENIZER_OPTIONS are accepted.
"""

import hashlib
import json
import re
import tempfile
from pathlib import Path
from typing import Any

from capmix.errors import UserError
from capmix.models.vocabulary import with_merges_path
from capmix.storage.json_text import parse_json

PARTS = {"embed_dim", "vision_cfg", "text_cfg"}
SIZES = ("vocab_size", "context_length")  # of text_cfg
MAX_PATH, MAX_NAME = 4096, 80  # characters of a path, and of a registered name
# Options of open_clip's tokenizers. Others would be passed to transformers (trust_remote_code).
TOKENIZER_OPTIONS = {"bpe_path", "additional_special_tokens", "clean",
                     "reduction_mask", "strip_sep_token", "language"}  # fmt: skip


def read_config(path: Path) -> dict[str, Any]:
    """Read an open_clip config file, with an absolute bpe_path. Raises UserError if it is none."""
    try:
        value = parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"model {path}: not a readable JSON file ({error})") from error
    if not isinstance(value, dict) or not value.keys() >= PARTS:
        raise UserError(
            f"model {path}: expected an open_clip config with embed_dim, vision_cfg and text_cfg"
        )
    for part in ("vision_cfg", "text_cfg"):
        if not isinstance(value[part], dict):
            raise UserError(f"model {path}: expected a mapping as {part}")
    check_config(f"model {path}", value)
    return with_merges_path(path, value)


def check_config(what: str, config: dict[str, Any]) -> None:
    """Raise UserError for invalid or unsupported tokenizer options. `what` begins the message."""
    text = config.get("text_cfg", {})
    options = text.get("tokenizer_kwargs", {}) if isinstance(text, dict) else None
    is_whole = isinstance(options, dict) and _is_path(options.get("bpe_path", ""))
    if options is None or not is_whole or not all(isinstance(text.get(n, 0), int) for n in SIZES):
        raise UserError(
            f"{what}: expected mappings in text_cfg and its tokenizer_kwargs, a path in bpe_path, "
            f"numbers in {' and '.join(SIZES)}"
        )
    tokens = options.get("additional_special_tokens") or []
    if not isinstance(tokens, list) or not all(isinstance(one, str) for one in tokens):
        raise UserError(f"{what}: additional_special_tokens: expected a list of texts")
    other = sorted(options.keys() - TOKENIZER_OPTIONS)
    if other:
        raise UserError(
            f"{what}: text_cfg.tokenizer_kwargs: {other[0]!r} is not supported; expected "
            f"{', '.join(sorted(TOKENIZER_OPTIONS))}"
        )


def _is_path(value: Any) -> bool:
    """Whether a value can be a path: text that the system's calls accept."""
    return isinstance(value, str) and "\0" not in value and len(value) < MAX_PATH


def know_model(name: str, config: dict[str, Any] | None) -> None:
    """Register `config` with open_clip; without one, raise UserError if `name` is unknown."""
    import open_clip

    if config is None:
        if name not in open_clip.list_models():
            raise UserError(
                f"--model {name}: unknown open_clip model (and not a .json config file)"
            )
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{name}.json"
        path.write_text(json.dumps(config), "utf-8")
        open_clip.add_model_config(path)


def know_config(stem: str, config: dict[str, Any]) -> str:
    """Register `config` with open_clip under a name of its own, which is returned.

    The name contains `stem`, because open_clip chooses some tokenizers by name, and a digest, so
    that the config replaces no other model of this process.
    """
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:8]
    name = f"{re.sub(r'[^A-Za-z0-9_.-]', '-', stem)[:MAX_NAME]}-{digest}"
    know_model(name, config)
    return name

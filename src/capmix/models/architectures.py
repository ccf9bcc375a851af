"""Architectures of open_clip that a .json config file describes, and their own BPE merges.

Configs and merges are untrusted: only the tokenizer options of TOKENIZER_OPTIONS are accepted, and
the size of merges is bounded.
"""

import gzip
import hashlib
import json
import re
import tempfile
import zlib
from pathlib import Path
from typing import Any

from capmix.errors import UserError
from capmix.storage.json_text import parse_json

# As in open_clip: the first line is skipped, and each byte has a token at the end of a word, too.
CLIPS_VOCABULARY, MAX_LINES, BYTES_AND_ENDS = 49408, 49152 - 256 - 2 + 1, 2 * 256 + 2
MAX_MERGES = 2**24  # bytes of the decompressed text; open_clip's own merges have 1.4 MB
# Options of open_clip's tokenizers. Others would be passed to transformers (trust_remote_code).
TOKENIZER_OPTIONS = {"bpe_path", "additional_special_tokens", "context_length", "clean",
                     "reduction_mask", "strip_sep_token", "language"}  # fmt: skip


def read_config(path: Path) -> dict[str, Any]:
    """Read an open_clip config file. Raises UserError if it is not one."""
    try:
        value = parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"model {path}: not a readable JSON file ({error})") from error
    if not isinstance(value, dict) or not {"embed_dim", "vision_cfg", "text_cfg"} <= value.keys():
        raise UserError(
            f"model {path}: expected an open_clip config with embed_dim, vision_cfg and text_cfg"
        )
    check_config(f"model {path}", value)
    return value


def check_config(what: str, config: dict[str, Any]) -> None:
    """Raise UserError for invalid or unsupported tokenizer options. `what` begins the message."""
    text = config.get("text_cfg", {})
    options = text.get("tokenizer_kwargs", {}) if isinstance(text, dict) else None
    is_whole = isinstance(options, dict) and isinstance(options.get("bpe_path", ""), str)
    if options is None or not is_whole or not isinstance(text.get("vocab_size", 0), int):
        raise UserError(
            f"{what}: expected mappings in text_cfg and its tokenizer_kwargs, a path in bpe_path, "
            "a number in vocab_size"
        )
    other = sorted(options.keys() - TOKENIZER_OPTIONS)
    if other:
        raise UserError(
            f"{what}: text_cfg.tokenizer_kwargs: {other[0]!r} is not supported; expected "
            f"{', '.join(sorted(TOKENIZER_OPTIONS))}"
        )


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
    name = f"{re.sub(r'[^A-Za-z0-9_.-]', '-', stem)}-{digest}"
    know_model(name, config)
    return name


def merges_path(config: dict[str, Any], folder: Path) -> Path | None:
    """Return the file of the model's own BPE merges (bpe_path); None if it has none.

    A relative path is relative to `folder`, the directory of the config file.
    """
    path = config.get("text_cfg", {}).get("tokenizer_kwargs", {}).get("bpe_path")
    return folder / path if path else None


def with_merges(config: dict[str, Any], path: Path | None) -> dict[str, Any]:
    """Return the config with the merges in the file `path`; unchanged without one."""
    if path is None:
        return config
    text = config["text_cfg"]
    options = text.get("tokenizer_kwargs", {}) | {"bpe_path": str(path.resolve())}
    return config | {"text_cfg": text | {"tokenizer_kwargs": options}}


def merges_digest(what: str, config: dict[str, Any], path: Path) -> str:
    """Return 16 hex digits of a hash of the decompressed merges.

    Raises UserError, which begins with `what`, if the file is not a gzip file of text, if it is too
    large, or if the config's vocabulary is smaller than that of the merges.
    """
    try:
        with gzip.open(path) as stream:
            data = stream.read(MAX_MERGES + 1)
        data.decode("utf-8")
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise UserError(
            f"{what}: bpe_path {path}: expected a gzip file of BPE merges ({error})"
        ) from error
    if len(data) > MAX_MERGES:
        raise UserError(f"{what}: bpe_path {path}: larger than {MAX_MERGES:,} bytes")
    needed = BYTES_AND_ENDS + len(data.split(b"\n")[1:MAX_LINES])
    if (size := config["text_cfg"].get("vocab_size", CLIPS_VOCABULARY)) < needed:
        raise UserError(
            f"{what}: text_cfg.vocab_size is {size}, but the merges in {path} make {needed} tokens"
        )
    return hashlib.sha256(data).hexdigest()[:16]

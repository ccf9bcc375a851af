"""The merges file of a config's tokenizer (text_cfg.tokenizer_kwargs.bpe_path).

open_clip's SimpleTokenizer reads a gzip file of text: a header line that it skips, then one merge
of two symbols per line, of which it uses the first 48,894. The ids are 512 bytes (256 inside and
256 at the end of a word), one per line, and two special tokens, the largest ids.
"""

import gzip
import hashlib
import os
import zlib
from pathlib import Path
from typing import Any

from capmix.errors import UserError

BYTES, SPECIAL, MERGES = 512, 2, 48_894
KNOWN_SIZE = BYTES + MERGES + SPECIAL  # of open_clip's own merges file
MAX_BYTES = 64 * 2**20  # of text; open_clip's own file has 3 MB
HEADER = "#version"


def with_merges_path(path: Path, config: dict[str, Any]) -> dict[str, Any]:
    """Return the config of file `path` with an absolute bpe_path; it is relative to that file.

    If no such file exists, a relative path that exists in the current directory is used.
    """
    given = merges_path(config)
    if given is None:
        return config
    beside = (path.parent / given).resolve()
    found = beside if beside.is_file() or not given.is_file() else given.resolve()
    return with_merges(config, str(found))


def with_merges(config: dict[str, Any], path: str) -> dict[str, Any]:
    """Return the config with another bpe_path."""
    text = config["text_cfg"]
    options = text.get("tokenizer_kwargs", {}) | {"bpe_path": path}
    return config | {"text_cfg": text | {"tokenizer_kwargs": options}}


def merges_path(config: dict[str, Any]) -> Path | None:
    """Return the path of a config's merges file, if it names one."""
    text = config.get("text_cfg")
    options = text.get("tokenizer_kwargs") if isinstance(text, dict) else None
    given = options.get("bpe_path") if isinstance(options, dict) else None
    return Path(given) if isinstance(given, str) else None


def merges_digest(config: dict[str, Any] | None) -> str | None:
    """Return the SHA-256 of a config's merges; None if it names no existing file."""
    path = None if config is None else merges_path(config)
    if path is None or not os.path.isfile(path):
        return None
    return hashlib.sha256(_text(path)).hexdigest()


def check_vocabulary(name: str, config: dict[str, Any]) -> None:
    """Raise UserError if the merges file is invalid or has more ids than the model's vocab_size.

    Also raises if open_clip would not use the file, because it chooses another tokenizer by the
    model's name. Tokenizers of the Hub are not checked.
    """
    text = config["text_cfg"]
    if text.get("hf_tokenizer_name") or text.get("hf_model_name"):
        return
    path = merges_path(config)
    if "siglip" in name.lower():
        if path is not None:
            raise UserError(
                f"model {name}: open_clip uses SigLIP's tokenizer for names with siglip and "
                f"would ignore bpe_path {path}; give the config another name"
            )
        return
    ids = KNOWN_SIZE if path is None else _ids(path)
    options = text.get("tokenizer_kwargs") or {}
    ids += len(options.get("additional_special_tokens") or [])
    size = text.get("vocab_size", KNOWN_SIZE)
    if not isinstance(size, int) or size < ids:
        parts = f"{BYTES} bytes, {SPECIAL} special tokens and {ids - BYTES - SPECIAL:,} merges"
        shown = f"{size:,}" if isinstance(size, int) else repr(size)
        raise UserError(
            f"model {name}: text_cfg.vocab_size is {shown}, but its tokenizer has {ids:,} ids: "
            f"{parts}{'' if path is None else f' (lines of {path}, an empty last one included)'}. "
            f"Set vocab_size to {ids}"
        )


def _ids(path: Path) -> int:
    try:
        lines = _text(path).decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"bpe_path {path}: not UTF-8 text ({error})") from error
    if len(lines[0].split()) == 2 and HEADER not in lines[0]:
        raise UserError(
            f"bpe_path {path}: line 1 is a merge, but open_clip skips that line; start the file "
            f"with a line {HEADER}: 0.2"
        )
    merges = lines[1 : MERGES + 1]
    for number, line in enumerate(merges, 2):
        is_end = not line and number == len(lines)
        if len(line.split()) != 2 and not is_end:
            raise UserError(
                f"bpe_path {path}: line {number}: {line[:40]!r} is not a merge; expected two "
                "symbols separated by a space"
            )
    return BYTES + len(merges) + SPECIAL


def _text(path: Path) -> bytes:
    try:
        with gzip.open(path) as stream:
            text = stream.read(MAX_BYTES + 1)
    except FileNotFoundError as error:
        raise UserError(f"bpe_path {path}: no such file") from error
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"bpe_path {path}: not a gzip file of merges ({error})") from error
    if len(text) > MAX_BYTES:
        raise UserError(f"bpe_path {path}: has more than {MAX_BYTES >> 20} MiB of text")
    return text

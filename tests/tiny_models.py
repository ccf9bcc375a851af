"""Write small random models of real architectures, in the format of the published models."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForImageTextToText,
    BertConfig,
    BertModel,
    BertTokenizerFast,
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessor,
    BlipProcessor,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    Florence2Config,
    Florence2ForConditionalGeneration,
    Florence2Processor,
    GitConfig,
    GitForCausalLM,
    GitProcessor,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    PaliGemmaProcessor,
    PreTrainedTokenizerFast,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
    Siglip2Config,
    Siglip2ImageProcessor,
    Siglip2Model,
    Siglip2Processor,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
    SiglipProcessor,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
    SmolVLMImageProcessor,
    SmolVLMProcessor,
    SmolVLMVideoProcessor,
)

WORDS = "a red apple on the table two dogs in green grass cat sits near old house sea boat sky"
CHAT = (
    "{% for m in messages %}{{ m['role'] }}: {% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<image>{% else %}{{ c['text'] }}{% endif %}{% endfor %}\n"
    "{% endfor %}assistant:"
)
SIZE = {"height": 32, "width": 32}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "ffn_dim": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}


def blip(folder: Path) -> Path:
    tokenizer = _bert(folder)
    size = len(tokenizer)
    text = TEXT | {"vocab_size": size, "bos_token_id": 4, "sep_token_id": 3, "pad_token_id": 0}
    text |= {"eos_token_id": 3, "encoder_hidden_size": 32, "max_position_embeddings": 64}
    config = BlipConfig(text_config=text, vision_config=VISION, projection_dim=16)
    processor = BlipProcessor(BlipImageProcessor(size=SIZE), tokenizer)
    return _save(folder, BlipForConditionalGeneration(config), processor)


def blip2(folder: Path, width: int = 32) -> Path:
    tokenizer = _tokenizer()
    text = TEXT | {"hidden_size": width, "word_embed_proj_dim": width}
    text |= {"model_type": "opt", "vocab_size": len(tokenizer)}
    text |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "max_position_embeddings": 96}
    former = TEXT | {"vocab_size": 30, "encoder_hidden_size": 32}
    config = Blip2Config(
        text_config=text, vision_config=VISION, qformer_config=former, num_query_tokens=4
    )
    config.image_token_index = config.image_token_id = tokenizer.convert_tokens_to_ids("<image>")
    processor = Blip2Processor(BlipImageProcessor(size=SIZE), tokenizer, num_query_tokens=4)
    return _save(folder, Blip2ForConditionalGeneration(config), processor)


def blip2_t5(folder: Path) -> Path:
    tokenizer = _tokenizer()
    text = {"model_type": "t5", "vocab_size": len(tokenizer), "d_model": 32, "d_kv": 16, "d_ff": 64}
    text |= {"num_layers": 2, "num_heads": 2, "decoder_start_token_id": 0, "pad_token_id": 0}
    text["bos_token_id"] = 1  # as in the published config
    former = TEXT | {"vocab_size": 30, "encoder_hidden_size": 32}
    config = Blip2Config(
        text_config=text | {"eos_token_id": 2},
        vision_config=VISION,
        qformer_config=former,
        num_query_tokens=4,
    )
    config.image_token_index = config.image_token_id = tokenizer.convert_tokens_to_ids("<image>")
    processor = Blip2Processor(BlipImageProcessor(size=SIZE), tokenizer, num_query_tokens=4)
    return _save(folder, Blip2ForConditionalGeneration(config), processor)


def git(folder: Path) -> Path:
    tokenizer = _bert(folder)
    text = {k: v for k, v in TEXT.items() if k != "ffn_dim"} | {"vocab_size": len(tokenizer)}
    text |= {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
    config = GitConfig(vision_config=VISION, **text)
    pictures = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=SIZE)
    return _save(folder, GitForCausalLM(config), GitProcessor(pictures, tokenizer))


def qwen2_vl(folder: Path, width: int = 32) -> Path:
    names = ["<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"]
    tokenizer = _tokenizer(names, image="<|image_pad|>")
    ids = dict(zip(names, tokenizer.convert_tokens_to_ids(names), strict=True))
    text = TEXT | {"hidden_size": width, "vocab_size": len(tokenizer), "num_key_value_heads": 2}
    text |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    text["rope_parameters"] = {
        "rope_type": "default",
        "mrope_section": [n * width // 32 for n in (2, 3, 3)],
    }
    vision = {"depth": 2, "embed_dim": 32, "hidden_size": width, "num_heads": 2, "patch_size": 8}
    config = Qwen2VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )
    size = {"shortest_edge": 16 * 16, "longest_edge": 48 * 48}
    processor = Qwen2VLProcessor(
        Qwen2VLImageProcessor(patch_size=8, size=size),
        tokenizer,
        Qwen2VLVideoProcessor(patch_size=8),
        chat_template=CHAT.replace("<image>", "<|vision_start|><|image_pad|><|vision_end|>"),
    )
    return _save(folder, Qwen2VLForConditionalGeneration(config), processor)


def qwen3_vl(folder: Path, width: int = 32) -> Path:
    names = ["<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"]
    tokenizer = _tokenizer(names, image="<|image_pad|>")
    ids = dict(zip(names, tokenizer.convert_tokens_to_ids(names), strict=True))
    text = TEXT | {"hidden_size": width, "vocab_size": len(tokenizer), "num_key_value_heads": 2}
    text["head_dim"] = width // 2
    text |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    text["rope_parameters"] = {
        "rope_type": "default",
        "mrope_section": [n * width // 32 for n in (2, 3, 3)],
    }
    vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2}
    vision |= {"patch_size": 8, "out_hidden_size": width, "num_position_embeddings": 16}
    config = Qwen3VLConfig(
        text_config=text,
        vision_config=vision | {"deepstack_visual_indexes": [0]},
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )
    size = {"shortest_edge": 16 * 16, "longest_edge": 48 * 48}
    processor = Qwen3VLProcessor(
        Qwen2VLImageProcessor(patch_size=8, size=size),
        tokenizer,
        Qwen3VLVideoProcessor(patch_size=8),
        chat_template=CHAT.replace("<image>", "<|vision_start|><|image_pad|><|vision_end|>"),
    )
    return _save(folder, Qwen3VLForConditionalGeneration(config), processor)


def llava(folder: Path) -> Path:
    tokenizer = _tokenizer()
    text = TEXT | {"model_type": "llama", "vocab_size": len(tokenizer), "num_key_value_heads": 2}
    text |= {
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "max_position_embeddings": 256,
    }
    config = LlavaConfig(
        vision_config=VISION | {"model_type": "clip_vision_model", "projection_dim": 16},
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=16,
    )
    pictures = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=SIZE)
    processor = LlavaProcessor(
        pictures,
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        chat_template=CHAT,
        num_additional_image_tokens=1,
    )
    return _save(folder, LlavaForConditionalGeneration(config), processor)


def florence2(folder: Path) -> Path:
    tokenizer = _tokenizer()
    text = {"model_type": "bart", "vocab_size": len(tokenizer), "d_model": 32}
    for side in ("encoder", "decoder"):
        text |= {f"{side}_layers": 2, f"{side}_attention_heads": 2, f"{side}_ffn_dim": 64}
    text |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2}
    config = Florence2Config(
        text_config=text | {"max_position_embeddings": 96},
        vision_config={
            "depths": [1, 1, 1, 1],
            "embed_dim": [8, 16, 16, 32],
            "num_heads": [1, 2, 2, 4],
            "num_groups": [1, 2, 2, 4],
            "window_size": 4,
            "projection_dim": 32,
        },
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
    )
    pictures = CLIPImageProcessor(size={"height": 64, "width": 64}, do_center_crop=False)
    pictures.image_seq_length = 5
    processor = Florence2Processor(pictures, tokenizer, num_additional_image_tokens=1)
    return _save(folder, Florence2ForConditionalGeneration(config), processor)


def smolvlm(folder: Path, width: int = 32) -> Path:
    names = ["<fake_token_around_image>", "<global-img>", "<end_of_utterance>", "<video>"]
    tokenizer = _tokenizer(image="<image>", more=names)
    text = TEXT | {"hidden_size": width, "model_type": "llama", "num_key_value_heads": 2}
    text |= {"vocab_size": len(tokenizer)}
    text |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = SmolVLMConfig(
        vision_config=VISION,
        text_config=text,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        pad_token_id=0,
    )
    pictures = SmolVLMImageProcessor(
        size={"longest_edge": 64}, max_image_size={"longest_edge": 32}, do_image_splitting=True
    )
    processor = SmolVLMProcessor(
        pictures, tokenizer, SmolVLMVideoProcessor(), image_seq_len=4, chat_template=CHAT
    )
    return _save(folder, SmolVLMForConditionalGeneration(config), processor)


def paligemma(folder: Path) -> Path:
    tokenizer = _tokenizer()
    tokenizer.add_tokens([f"<loc{i:04d}>" for i in range(1024)])
    tokenizer.add_tokens([f"<seg{i:03d}>" for i in range(128)])
    text = TEXT | {"model_type": "gemma", "vocab_size": len(tokenizer), "num_key_value_heads": 1}
    text |= {"head_dim": 16, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = PaliGemmaConfig(
        vision_config=VISION | {"model_type": "siglip_vision_model", "vision_use_head": False},
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vocab_size=len(tokenizer),
        projection_dim=32,
        hidden_size=32,
    )
    pictures = SiglipImageProcessor(size=SIZE)
    pictures.image_seq_length = 16
    processor = PaliGemmaProcessor(pictures, tokenizer)
    return _save(folder, PaliGemmaForConditionalGeneration(config), processor)


def clip(folder: Path) -> Path:
    tokenizer = _tokenizer()
    text = TEXT | {"vocab_size": len(tokenizer), "max_position_embeddings": 64}
    text |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = CLIPConfig(text_config=text, vision_config=VISION, projection_dim=16)
    pictures = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=SIZE)
    return _save(folder, CLIPModel(config), CLIPProcessor(pictures, tokenizer))


def siglip(folder: Path) -> Path:
    tokenizer = _tokenizer()
    text = TEXT | {"vocab_size": len(tokenizer), "max_position_embeddings": 64}
    text |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "projection_size": 32}
    config = SiglipConfig(text_config=text, vision_config=VISION)
    processor = SiglipProcessor(SiglipImageProcessor(size=SIZE), tokenizer)
    return _save(folder, SiglipModel(config), processor)


def siglip2(folder: Path) -> Path:
    """Write the variant for images of any shape (NaFlex); the fixed-size variant is SigLIP's."""
    tokenizer = _tokenizer()
    text = TEXT | {"vocab_size": len(tokenizer), "max_position_embeddings": 64}
    text |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "projection_size": 32}
    # The processor requires 256 patches of 16 pixels, as in the published models.
    vision = {k: v for k, v in VISION.items() if k != "image_size"} | {"patch_size": 16}
    processor = Siglip2Processor(Siglip2ImageProcessor(), tokenizer)
    config = Siglip2Config(text_config=text, vision_config=vision)
    return _save(folder, Siglip2Model(config), processor)


BUILDERS = {
    "blip": blip,
    "blip2": blip2,
    "blip2_t5": blip2_t5,
    "florence2": florence2,
    "git": git,
    "llava": llava,
    "paligemma": paligemma,
    "qwen2_vl": qwen2_vl,
    "smolvlm": smolvlm,
}


def plain_model(folder: Path) -> Any:
    """Load the saved model like a user."""
    return AutoModelForImageTextToText.from_pretrained(folder).eval()


def _bert(folder: Path) -> BertTokenizerFast:
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[DEC]", *dict.fromkeys(WORDS.split())]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    return BertTokenizerFast(str(folder / "vocab.txt"))


def small_bert(folder: Path) -> Path:
    """Write a text encoder of 32 positions."""
    tokenizer = _bert(folder)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
    )
    return _save(folder, BertModel(config), tokenizer)


def small_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer whose tokens are the words of WORDS."""
    return _tokenizer()


def _tokenizer(more: Sequence[str] = (), image: str = "<image>") -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = ["<pad>", "<s>", "</s>", "<unk>", "<image>", *more]
    tokenizer.train_from_iterator([WORDS], trainers.WordLevelTrainer(special_tokens=special))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        extra_special_tokens={"image_token": image},
    )


def _save(folder: Path, model: Any, processor: Any) -> Path:
    torch.manual_seed(0)
    for parameter in model.parameters():
        # A wider initialization than usual, so that captions differ between images.
        parameter.data = torch.randn_like(parameter) * 0.2
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder

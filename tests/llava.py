"""A small verifier that takes images, a LLaVA with its family's own configuration and processor; and images."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any, Final

from small import SPECIALS, make_tokenizer

IMAGES: Final = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<image>\n' }}{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""ChatML that shows an image where it stands, as the templates of LLaVA's later models do."""
TOKEN: Final = 3
"""The token `<image>`."""
SIDE, PATCH = 28, 7
RUN: Final = (SIDE // PATCH) ** 2
"""Tokens of an image, whatever its size: it is cut to a square first."""
PROCESSOR: Final = {
    "image_processor": {
        "image_processor_type": "CLIPImageProcessor", "do_convert_rgb": True, "do_resize": True, "resample": 3,
        "size": {"shortest_edge": SIDE}, "do_center_crop": True, "crop_size": {"height": SIDE, "width": SIDE},
        "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True,
        "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711],
    },
    "processor_class": "LlavaProcessor", "image_token": "<image>", "patch_size": PATCH,
    "num_additional_image_tokens": 1, "vision_feature_select_strategy": "default",
}  # fmt: skip


def config(dtype: str = "bfloat16") -> dict[str, Any]:
    """Return a small LLaVA's `config.json`: a Llama as its text part, and a CLIP."""
    return {
        "architectures": ["LlavaForConditionalGeneration"], "model_type": "llava", "dtype": dtype,
        "image_token_index": TOKEN, "image_seq_length": RUN, "projector_hidden_act": "gelu",
        "multimodal_projector_bias": True, "tie_word_embeddings": True,
        "vision_feature_layer": -2, "vision_feature_select_strategy": "default",
        "text_config": {
            "model_type": "llama", "vocab_size": 384, "hidden_size": 64, "intermediate_size": 128,
            "num_hidden_layers": 6, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32,
            "max_position_embeddings": 512, "rms_norm_eps": 1e-6, "tie_word_embeddings": True, "bos_token_id": 1,
            "eos_token_id": 2, "initializer_range": 0.2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        },
        "vision_config": {
            "model_type": "clip_vision_model", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
            "num_attention_heads": 2, "image_size": SIDE, "patch_size": PATCH, "projection_dim": 32,
            "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
        },
    }  # fmt: skip


def make_llava(folder: Path, template: str = IMAGES, *, dtype: str = "bfloat16", weights: bool = True) -> Path:
    """Write a random LLaVA of a few hundred thousand parameters, or its small files alone."""
    make_tokenizer(folder, template, specials=(*SPECIALS, "<image>"))
    (folder / "processor_config.json").write_text(json.dumps(PROCESSOR, indent=2))
    (folder / "config.json").write_text(json.dumps(config(dtype), indent=2))
    if weights:
        import torch
        from transformers import LlavaConfig, LlavaForConditionalGeneration

        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = LlavaForConditionalGeneration(LlavaConfig.from_pretrained(folder))
            with torch.no_grad():  # as a trained projector does: an image's embeddings are as large as a word's
                for parameter in model.model.multi_modal_projector.parameters():
                    parameter.mul_(30)
            model.to(getattr(torch, dtype)).save_pretrained(folder)
    return folder


def picture(color: tuple[int, int, int] = (200, 30, 30), size: tuple[int, int] = (40, 30), form: str = "PNG",
            **options: Any) -> bytes:  # fmt: skip
    """Return the bytes of an image: a disc of a colour on white."""
    from PIL import Image, ImageDraw

    image, data = Image.new("RGB", size, (255, 255, 255)), io.BytesIO()
    ImageDraw.Draw(image).ellipse((size[0] // 4, size[1] // 4, size[0] * 3 // 4, size[1] * 3 // 4), fill=color)
    image.save(data, form, **options)
    return data.getvalue()


def data_url(data: bytes) -> str:
    """Return an image as OpenAI's clients send it."""
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"

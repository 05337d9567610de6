"""Small networks of the kinds of vision models of transformers: blocks are cuts, halves are exact."""

import pytest
import torch
from helpers_models import noise, stirred

from stitchgrid.models.cut_network import cut_network
from stitchgrid.models.select import select_layers
from stitchgrid.records import Interface

transformers = pytest.importorskip("transformers")

TOKENS = {
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 48,
}
STAGES = {"hidden_sizes": [8, 12, 24, 32], "depths": [1, 2, 2, 1]}
HEADS = {"num_attention_heads": [1, 2, 2, 2]}
WINDOWS = {"image_size": 32, "patch_size": 2, "embed_dim": 12, "depths": [2, 2], "num_heads": [2, 2], "window_size": 4}
TEXT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
CVT = {"embed_dim": [16, 24], "num_heads": [1, 2], "depth": [1, 2], "patch_sizes": [7, 3], "patch_stride": [4, 2]}
CVT |= {
    name: value[:2] for name, value in transformers.CvtConfig().to_dict().items() if value in ([0.0] * 3, [True] * 3)
}
CVT |= {name: transformers.CvtConfig().to_dict()[name][1:] for name in ("cls_token", "drop_path_rate")}
LEVIT = {"image_size": 64, "hidden_sizes": [16, 24, 32], "num_attention_heads": [2] * 3, "depths": [1, 2, 2]}
MOBILE = {"image_size": 64, "hidden_sizes": [16, 24, 32], "neck_hidden_sizes": [8, 8, 12, 16, 24, 32, 40]}
HIERA = {"image_size": [32, 32], "patch_size": [3, 3], "patch_stride": [2, 2], "patch_padding": [1, 1], "embed_dim": 12}
HIERA |= {"depths": [1, 2, 2, 1], "num_heads": [1, 2, 2, 4], "masked_unit_size": [8, 8], "query_stride": [2, 2]}
CLASSIFIERS = {  # name -> configuration, side of the images
    "ViT": (TOKENS, 32),
    "DeiT": (TOKENS, 32),
    "Beit": ({**TOKENS, "use_relative_position_bias": True}, 32),
    "Data2VecVision": (TOKENS, 32),
    "Dinov2": (TOKENS, 32),
    "Dinov2WithRegisters": ({**TOKENS, "num_register_tokens": 2}, 32),
    "IJepa": (TOKENS, 32),
    "ViTMSN": (TOKENS, 32),
    "CLIP": ({"vision_config": TOKENS}, 32),
    "MetaClip2": ({"vision_config": TOKENS}, 32),
    "Siglip": ({"vision_config": TOKENS}, 32),
    "Hiera": (HIERA, 32),
    "ResNet": ({"embedding_size": 8, **STAGES}, 32),
    "Bit": ({"embedding_size": 8, **STAGES, "num_groups": 2}, 32),
    "RegNet": ({"embedding_size": 8, **STAGES, "groups_width": 4}, 32),
    "ConvNext": (STAGES, 64),
    "ConvNextV2": (STAGES, 64),
    "Swin": (WINDOWS, 32),
    "Swinv2": (WINDOWS, 32),
    "DonutSwin": (WINDOWS, 32),
    "FocalNet": ({"image_size": 32, "patch_size": 2, "embed_dim": 12, "depths": [2, 2], "focal_windows": [3, 3]}, 32),
    "Cvt": (CVT, 32),
    "EfficientNet": ({"image_size": 32, "width_coefficient": 0.25, "depth_coefficient": 0.3, "hidden_dim": 320}, 32),
    "MobileNetV1": ({"image_size": 32, "depth_multiplier": 0.25}, 32),
    "MobileNetV2": ({"image_size": 32, "depth_multiplier": 0.35}, 32),
    "MobileViT": ({**MOBILE, "num_attention_heads": 2}, 64),
    "MobileViTV2": ({"image_size": 64, "width_multiplier": 0.25}, 64),
    "PoolFormer": (STAGES, 32),
    "Pvt": ({"image_size": 64, **STAGES, **HEADS, "sequence_reduction_ratios": [4, 2, 1, 1]}, 64),
    "PvtV2": ({"image_size": 64, **STAGES, **HEADS}, 64),
    "Segformer": ({**STAGES, **HEADS}, 64),
    "SwiftFormer": ({"image_size": 64, "embed_dims": [8, 16, 24, 32], "depths": [1, 2, 2, 1]}, 64),
    "Levit": ({**LEVIT, "patch_size": 16, "key_dim": [8] * 3}, 64),
    "TextNet": ({}, 64),
    "PPLCNet": ({"scale": 0.25}, 32),
}
ENCODERS = {  # name -> configuration, what counts of what they return
    "ViTModel": (TOKENS, "pooler_output"),
    "Dinov2Model": (TOKENS, "pooler_output"),
    "ConvNextModel": (STAGES, "pooler_output"),
    "CLIPVisionModelWithProjection": (TOKENS, "image_embeds"),
    "SiglipVisionModel": (TOKENS, "pooler_output"),
    "DINOv3ViTModel": ({**TOKENS, "num_register_tokens": 2}, "pooler_output"),
    "ViTMAEModel": ({**TOKENS, "mask_ratio": 0.0}, "last_hidden_state"),
}


def checked(module, side, interface):
    cut = cut_network(stirred(module), (3, side, side), interface)
    images = noise(3, 3, side, side)
    nodes = [one.node for one in cut.cuts if one.can_be_stitched]
    with torch.no_grad():
        whole = cut.whole(images)
        for node, a in zip(nodes, cut.taps(nodes)(images), strict=True):
            assert a.shape[0] == 3
            assert torch.allclose(cut.suffix(node)(a), whole, rtol=1e-6, atol=1e-6), node
    return cut


def made(kind, arguments, suffix="ForImageClassification"):
    config = getattr(transformers, f"{kind}Config")(**arguments)
    config.num_labels = 10
    torch.manual_seed(0)
    return getattr(transformers, f"{kind}{suffix}")(config)


@pytest.mark.slow
@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_blocks_of_classifiers_are_cuts_and_halves_are_exact(kind):
    arguments, side = CLASSIFIERS[kind]
    output = "last_hidden_state" if kind == "PPLCNet" else "logits"
    cut = checked(made(kind, arguments), side, Interface(output=output))
    assert len(select_layers(cut, ["blocks"])) > 1


@pytest.mark.slow
@pytest.mark.parametrize("kind", ENCODERS)
def test_encoders_are_cut_as_classifiers_are(kind):
    arguments, output = ENCODERS[kind]
    stem = kind.removesuffix("WithProjection").removesuffix("Model")
    suffix = kind.removeprefix(stem)
    cut = checked(made(stem, arguments, suffix), 32, Interface(output=output, averages=True))
    assert len(select_layers(cut, ["blocks"])) > 1

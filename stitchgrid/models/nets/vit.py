"""A small vision transformer for small images: torchvision's class with the sizes of ViT-Tiny and patches of 4."""

from torch import nn

from stitchgrid.vision import VisionTransformer


def vit_tiny(
    *,
    image_size: int = 32,
    patch_size: int = 4,
    num_layers: int = 12,
    num_heads: int = 3,
    hidden_dim: int = 192,
    mlp_dim: int = 768,
    num_classes: int = 10,
) -> nn.Module:
    """Return a vision transformer with one class token.

    Torchvision initialises the head with zeros: every class score of an untrained network is 0.
    """
    if image_size % patch_size or hidden_dim % num_heads:
        raise ValueError(
            f"image_size must be a multiple of patch_size and hidden_dim one of num_heads, got {image_size} and "
            f"{patch_size}, {hidden_dim} and {num_heads}"
        )
    network: nn.Module = VisionTransformer(
        image_size=image_size,
        patch_size=patch_size,
        num_layers=num_layers,
        num_heads=num_heads,
        hidden_dim=hidden_dim,
        mlp_dim=mlp_dim,
        num_classes=num_classes,
    )
    return network

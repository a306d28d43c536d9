"""The demo's network: a small Vision Transformer for 8 x 8 images, in plain torch.

Owns the architecture and its tensor names. Knows nothing of tasks, training or of uws-store.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

IMAGE_SIZE = 8
PATCH_SIZE = 2
DIM = 64
DEPTH = 4
HEADS = 4
MLP_DIM = 128


class Attention(nn.Module):
    """Multi-head self-attention with one fused projection for queries, keys and values."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(DIM, 3 * DIM)
        self.proj = nn.Linear(DIM, DIM)

    def forward(self, x: Tensor) -> Tensor:
        """Attend.

        Parameters
        ----------
        x : Tensor
            ``(batch, tokens, DIM)`` float32.

        Returns
        -------
        Tensor
            ``(batch, tokens, DIM)`` float32.
        """
        batch, tokens, _ = x.shape
        query, key, value = (
            self.qkv(x).view(batch, tokens, 3, HEADS, DIM // HEADS).permute(2, 0, 3, 1, 4).unbind(0)
        )
        mixed = functional.scaled_dot_product_attention(query, key, value)
        out: Tensor = self.proj(mixed.transpose(1, 2).reshape(batch, tokens, DIM))
        return out


class Block(nn.Module):
    """One pre-norm transformer block."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(DIM)
        self.attn = Attention()
        self.norm2 = nn.LayerNorm(DIM)
        self.fc1 = nn.Linear(DIM, MLP_DIM)
        self.fc2 = nn.Linear(MLP_DIM, DIM)

    def forward(self, x: Tensor) -> Tensor:
        """Apply attention and the perceptron, each with a residual connection, to ``(batch, tokens, DIM)``."""
        x = x + self.attn(self.norm1(x))
        out: Tensor = x + self.fc2(functional.gelu(self.fc1(self.norm2(x))))
        return out


class DigitsViT(nn.Module):
    """A ViT with a class token: 135,488 parameters and a head of ``65 * n_classes``.

    Parameters
    ----------
    n_classes : int
        Rows of the head, at least 2.
    """

    def __init__(self, n_classes: int) -> None:
        super().__init__()
        n_patches = (IMAGE_SIZE // PATCH_SIZE) ** 2
        self.cls_token = nn.Parameter(torch.randn(1, 1, DIM) * 0.02)
        self.pos_embed = nn.Parameter(torch.randn(1, n_patches + 1, DIM) * 0.02)
        self.patch_embed = nn.Linear(PATCH_SIZE * PATCH_SIZE, DIM)
        self.blocks = nn.ModuleList(Block() for _ in range(DEPTH))
        self.norm = nn.LayerNorm(DIM)
        self.head = nn.Linear(DIM, n_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Classify.

        Parameters
        ----------
        images : Tensor
            ``(batch, IMAGE_SIZE, IMAGE_SIZE)`` float32, about zero mean and unit variance.

        Returns
        -------
        Tensor
            ``(batch, n_classes)`` float32 logits.
        """
        side = IMAGE_SIZE // PATCH_SIZE
        batch = images.shape[0]
        patches = images.view(batch, side, PATCH_SIZE, side, PATCH_SIZE).transpose(2, 3)
        x = self.patch_embed(patches.reshape(batch, side * side, PATCH_SIZE * PATCH_SIZE))
        x = torch.cat([self.cls_token.expand(batch, -1, -1), x], dim=1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.norm(x[:, 0]))
        return logits

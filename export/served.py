"""The form of the model that is exported: the same function with less work, in the requested precision.

- Normalisation is folded into the patch embedding's weights, which is exact because the convolution has no padding. Its
  patches do not overlap, so it becomes a matrix product, which engines run faster and which int8 covers.
- The last block computes only the tokens that the heads read; it still attends to all. This is exact and saves 7 % of a
  DeiT's work.
- Queries, keys and values are separate products and the attention's factor is part of the queries' weights, so that no
  tensor is sliced or scaled.
- In half precision the products and GELU run in it, and what would lose too much accuracy stays in float32: LayerNorm,
  softmax, the patch embedding (2 % of the work), the residual stream and the heads
  (https://github.com/NVIDIA/TensorRT/issues/2709). The casts are part of the graph, because TensorRT 11 computes in the
  types that it reads and has no other setting.
"""

from copy import deepcopy

import torch
import torch.nn.functional as F
from timm.layers import Attention, Mlp, PatchEmbed
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from export.fused import FEWEST_QUERIES, FusedBlock
from export.joint import JointClassifier
from export.product import Product


def served_form(
    classifier: JointClassifier, dtype: torch.dtype = torch.float32, *, for_gpu: bool = False
) -> JointClassifier:
    """A copy of `classifier` to export, in evaluation mode, with the products in `dtype`.

    A model that is not one of timm's ViTs is unchanged, in float32.

    Args:
        for_gpu: fuse attention and its three products, and compute the patches in `dtype` too: pixels are whole
            numbers to 255, which half precision holds exactly, and float32 products are slow on GPUs.
    """
    served = deepcopy(classifier).eval()
    model = served.model
    if not isinstance(model, VisionTransformer):
        return served
    if _is_plain_embedding(model.patch_embed):
        model.patch_embed = ServedPatches(
            model.patch_embed.proj, served.scale, served.shift, dtype if for_gpu else torch.float32
        )
        served.normalises = False
    kind = FusedBlock if for_gpu else ServedBlock
    blocks = [kind(block, dtype) if _is_plain(block) else block for block in model.blocks]
    if for_gpu and isinstance(blocks[0], FusedBlock):
        residual = blocks[0].residual_dtype
        blocks = [Cast(residual), *blocks, Cast(torch.float32)]  # embeddings before, norm and heads after: float32
    if model.global_pool == "token" and isinstance(blocks[-1 - for_gpu], ServedBlock | FusedBlock):
        fewest = FEWEST_QUERIES if for_gpu else 1
        blocks[-1 - for_gpu].kept_tokens = max(fewest, model.num_prefix_tokens)  # the heads read those they know
    model.blocks = nn.Sequential(*blocks)
    return served


def _is_plain_embedding(embedding: nn.Module) -> bool:
    """Whether the patches are those of DeiT: side by side, square, in rows."""
    projection = getattr(embedding, "proj", None)
    return (
        type(embedding) is PatchEmbed
        and isinstance(projection, nn.Conv2d)
        and (projection.padding, projection.dilation, projection.groups) == ((0, 0), (1, 1), 1)
        and projection.stride == projection.kernel_size == embedding.patch_size
        and bool(embedding.flatten)
        and not embedding.dynamic_img_pad
        and isinstance(embedding.norm, nn.Identity)
    )


def _is_plain(block: nn.Module) -> bool:
    """Whether the block is the one of DeiT, whose forward `ServedBlock` repeats."""
    return (
        isinstance(block, Block)
        and type(block) is Block
        and type(block.attn) is Attention
        and type(block.mlp) is Mlp
        and isinstance(block.attn.q_norm, nn.Identity)
        and isinstance(getattr(block.attn, "norm", nn.Identity()), nn.Identity)
        and isinstance(block.mlp.norm, nn.Identity)
        and isinstance(block.mlp.act, nn.GELU)
    )


class ServedPatches(nn.Module):
    """The patch embedding of pixels 0..255, float32 (N, H, W, 3), as one product: (N, patches, width).

    convolution(pixels * scale + shift) with a stride of its kernel's size.
    """

    def __init__(self, projection: nn.Conv2d, scale: Tensor, shift: Tensor, dtype: torch.dtype) -> None:
        super().__init__()
        weight = projection.weight.detach().double()
        bias = (weight * shift.double()).sum(dim=(1, 2, 3))
        if projection.bias is not None:
            bias += projection.bias.detach()
        rows = (weight * scale.double()).permute(0, 2, 3, 1).flatten(1)
        self.product = Product(rows, bias, dtype)
        self.height, self.width = projection.kernel_size

    def forward(self, pixels: Tensor) -> Tensor:
        rows, columns = pixels.shape[1] // self.height, pixels.shape[2] // self.width
        # In each row of patches, lines of pixels cut into pieces: a piece is contiguous, so one transposition is all
        pieces = pixels.reshape(-1, self.height, columns, self.width * pixels.shape[3])
        patches = pieces.transpose(1, 2).reshape(-1, rows * columns, self.product.weight.shape[1])
        result: Tensor = self.product(patches).float()
        return result


class Cast(nn.Module):
    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens.to(self.dtype)


class ServedBlock(nn.Module):
    """timm's Block of a ViT; with `kept_tokens` it gives only that many of the first tokens."""

    def __init__(self, block: Block, dtype: torch.dtype) -> None:
        super().__init__()
        attention, mlp = block.attn, block.mlp
        self.dtype, self.heads = dtype, attention.num_heads
        self.kept_tokens: int | None = None
        self.norm1, self.norm2, self.scale1, self.scale2 = block.norm1, block.norm2, block.ls1, block.ls2
        weights = attention.qkv.weight.chunk(3)
        biases = attention.qkv.bias.chunk(3) if attention.qkv.bias is not None else (None, None, None)
        factor = attention.scale
        self.query = Product(weights[0] * factor, None if biases[0] is None else biases[0] * factor, dtype)
        self.key = Product(weights[1], biases[1], dtype)
        self.value = Product(weights[2], biases[2], dtype)
        self.projection = Product(attention.proj.weight, attention.proj.bias, dtype)
        self.fc1 = Product(mlp.fc1.weight, mlp.fc1.bias, dtype)
        self.fc2 = Product(mlp.fc2.weight, mlp.fc2.bias, dtype)
        self.approximate = mlp.act.approximate

    def forward(self, tokens: Tensor) -> Tensor:
        return self.attended(tokens)[0]

    def attended(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """The tokens, and their attention to the input tokens, (N, heads, kept tokens, tokens)."""
        normed = self.norm1(tokens)
        # Cast once, not once for each product
        everything = normed.to(self.dtype)
        asking = everything
        if self.kept_tokens is not None:
            tokens, asking = tokens[:, : self.kept_tokens], everything[:, : self.kept_tokens]
        query = self._by_head(self.query(asking)).transpose(1, 2)
        key = self._by_head(self.key(everything)).permute(0, 2, 3, 1)
        value = self._by_head(self.value(everything)).transpose(1, 2)
        attention = (query @ key).float().softmax(dim=-1).to(self.dtype)
        gathered = (attention @ value).transpose(1, 2).flatten(2)
        tokens = tokens + self.scale1(self.projection(gathered).float())
        hidden = F.gelu(self.fc1(self.norm2(tokens)), approximate=self.approximate)
        return tokens + self.scale2(self.fc2(hidden).float()), attention

    def _by_head(self, tokens: Tensor) -> Tensor:
        """(N, tokens, width) to (N, tokens, heads, width of a head)."""
        return tokens.reshape(tokens.shape[0], tokens.shape[1], self.heads, -1)

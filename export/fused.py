"""The block of a ViT in the form that suits GPUs: one product for queries, keys and values, one operator for attention.

`Attention` of ONNX opset 23 is flash attention in ONNX Runtime's CUDA provider and in TensorRT: the scores, which for
DeiT are as large as the tokens, never reach the GPU's memory. It takes queries, keys and values as the product gives
them, (N, tokens, width), so nothing is transposed. CPUs run the separate products of export/served.py faster.
"""

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.onnx.ops import attention

from export.product import Product

FEWEST_QUERIES = 2
"""TensorRT has no fused attention for one query, and builds no plan with it (seen with TensorRT-RTX 1.7.1)."""


class FusedBlock(nn.Module):
    """timm's Block of a ViT, with the products, attention and the residual stream in `dtype`.

    Sums inside a product, a LayerNorm and a softmax are float32 on GPUs whatever the type of their operands, so the
    residual stream is the only place where half precision adds up over the depth; bfloat16 has too few digits for that
    and keeps it in float32.

    Attributes:
        kept_tokens: give only that many of the first tokens; None for all.
    """

    def __init__(self, block: Block, dtype: torch.dtype) -> None:
        super().__init__()
        attn, mlp = block.attn, block.mlp
        self.dtype, self.heads = dtype, attn.num_heads
        self.residual_dtype = torch.float32 if dtype == torch.bfloat16 else dtype
        self.kept_tokens: int | None = None
        self.norm1, self.norm2, self.scale1, self.scale2 = (
            module.to(self.residual_dtype) for module in (block.norm1, block.norm2, block.ls1, block.ls2)
        )
        # Attention's factor is part of the queries' weights: exact for DeiT, whose factor is 1/8
        width = attn.qkv.in_features
        factors = torch.ones(3 * width)
        factors[:width] = attn.scale
        self.qkv = Product(
            attn.qkv.weight * factors[:, None], None if attn.qkv.bias is None else attn.qkv.bias * factors, dtype
        )
        self.projection = Product(attn.proj.weight, attn.proj.bias, dtype)
        self.fc1 = Product(mlp.fc1.weight, mlp.fc1.bias, dtype)
        self.fc2 = Product(mlp.fc2.weight, mlp.fc2.bias, dtype)
        self.approximate = mlp.act.approximate

    def forward(self, tokens: Tensor) -> Tensor:
        query, key, value = self.qkv(self.norm1(tokens)).chunk(3, dim=-1)
        if self.kept_tokens is not None:
            tokens, query = tokens[:, : self.kept_tokens], query[:, : self.kept_tokens]
        gathered, *_ = attention(query, key, value, q_num_heads=self.heads, kv_num_heads=self.heads, scale=1.0)
        tokens = tokens + self.scale1(self.projection(gathered).to(self.residual_dtype))
        hidden = F.gelu(self.fc1(self.norm2(tokens)), approximate=self.approximate)
        result: Tensor = tokens + self.scale2(self.fc2(hidden).to(self.residual_dtype))
        return result

"""The block of a ViT as suits GPUs: one product for queries, keys and values, and attention as one operator.

`Attention` of ONNX opset 23 is flash attention in ONNX Runtime's CUDA provider and in TensorRT: the scores, which for
DeiT are as large as the tokens, never reach the GPU's memory. Processors run the separate products of export/served.py
faster.
"""

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from export.product import Product


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
        attention, mlp = block.attn, block.mlp
        self.dtype, self.heads = dtype, attention.num_heads
        self.residual_dtype = torch.float32 if dtype == torch.bfloat16 else dtype
        self.kept_tokens: int | None = None
        self.norm1, self.norm2, self.scale1, self.scale2 = (
            module.to(self.residual_dtype) for module in (block.norm1, block.norm2, block.ls1, block.ls2)
        )
        self.qkv = Product(attention.qkv.weight, attention.qkv.bias, dtype)
        self.projection = Product(attention.proj.weight, attention.proj.bias, dtype)
        self.fc1 = Product(mlp.fc1.weight, mlp.fc1.bias, dtype)
        self.fc2 = Product(mlp.fc2.weight, mlp.fc2.bias, dtype)
        self.approximate = mlp.act.approximate

    def forward(self, tokens: Tensor) -> Tensor:
        count = tokens.shape[1]
        qkv = self.qkv(self.norm1(tokens)).reshape(-1, count, 3, self.heads, tokens.shape[2] // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        if self.kept_tokens is not None:
            tokens, query = tokens[:, : self.kept_tokens], query[:, :, : self.kept_tokens]
        gathered = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        tokens = tokens + self.scale1(self.projection(gathered).to(self.residual_dtype))
        hidden = F.gelu(self.fc1(self.norm2(tokens)), approximate=self.approximate)
        result: Tensor = tokens + self.scale2(self.fc2(hidden).to(self.residual_dtype))
        return result

"""A linear layer with its own precision, the part from which served blocks are built."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Product(nn.Module):
    """A linear layer in its own precision: the input is cast to it, the output is in it."""

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.detach().to(dtype), requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias.detach().to(dtype), requires_grad=False)

    def forward(self, inputs: Tensor) -> Tensor:
        return F.linear(inputs.to(self.weight.dtype), self.weight, self.bias)

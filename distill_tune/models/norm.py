"""The root mean square norm of Llama and its kin."""

import torch
import torch.nn.functional as F
from torch import nn


class RMSNorm(nn.Module):
    """Root mean square norm (arXiv 1910.07467), in float32, scaled in the dtype of ``x``, as transformers has it.

    torchtune's hands a bf16 scale to a float32 kernel, which is slower and warns.
    """

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.scale = nn.Parameter(torch.ones(dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x.float(), self.scale.shape, eps=self.eps).to(x.dtype) * self.scale

"""The 1x1 convolution, with the same bits whatever the number of threads."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from ldm import ops
from ldm.ops.linear import linear

SMALL = 20_480  # numbers, up to which torch keeps a single map from oneDNN (aten/src/ATen/native/Convolution.cpp, use_mkldnn)


class Pointwise(nn.Conv2d):
    """x (B, C, H, W) -> (B, D, H, W): one matrix at every position.

    On the CPU torch sums a 1x1 convolution in one library where it has a single thread and in another where it has more, so the last
    bits, and now and then a pixel, would depend on the machine's cores. A dilated one always goes to the second; with one tap there is
    nothing to dilate. But for a single small map, which stays in the first, whose last rows depend on the threads: that is a linear layer.
    """

    def __init__(self, before: int, width: int) -> None:
        super().__init__(before, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        if ops.use_reference() or x.device.type != "cpu":
            return super().forward(x)
        if len(x) == 1 and x.numel() <= SMALL:
            return linear(x.permute(0, 2, 3, 1), self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)
        return F.conv2d(x, self.weight, self.bias, dilation=2)

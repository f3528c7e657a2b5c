"""Batch normalisation with the statistics of the global batch, on any device."""

import torch
import torch.distributed
from torch import Tensor, nn


class GlobalBatchNorm(nn.BatchNorm2d):
    """BatchNorm2d that learns from the images of all processes together; PyTorch's own SyncBatchNorm needs a GPU.

    In evaluation mode, and with a single process, it is nn.BatchNorm2d. Every process must bring a batch of one size.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return super().forward(x)
        processes = torch.distributed.get_world_size()
        values = x.float()
        # In two passes: the mean of squares less the square of the mean would lose digits in float32.
        mean = _SumOfProcesses.apply(values.mean(dim=(0, 2, 3))) / processes
        centred = values - mean[:, None, None]
        variance = _SumOfProcesses.apply(centred.square().mean(dim=(0, 2, 3))) / processes
        with torch.no_grad():
            count = processes * x.numel() / x.shape[1]
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (count / (count - 1)), self.momentum)
        scale = self.weight / torch.sqrt(variance + self.eps)
        return torch.addcmul(self.bias[:, None, None], centred, scale[:, None, None]).to(x.dtype)


class _SumOfProcesses(torch.autograd.Function):
    """The sum over all processes; a gradient at it comes from the losses of all of them."""

    @staticmethod
    def forward(context, x: Tensor) -> Tensor:
        total = x.clone()
        torch.distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(context, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        torch.distributed.all_reduce(total)
        return total


def fix_scale(norm: nn.BatchNorm2d) -> nn.BatchNorm2d:
    """Keep gamma at 1 and let only beta learn."""
    norm.weight.requires_grad_(False)
    return norm

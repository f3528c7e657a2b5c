"""Means over the batch of all processes together."""

import torch.distributed
from torch import Tensor


def per_process_share(count: Tensor) -> Tensor:
    """The count of the global batch, per process: sums divided by it, averaged over processes, are global means."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        count = count.float()
        torch.distributed.all_reduce(count)
        count = count / torch.distributed.get_world_size()
    return count

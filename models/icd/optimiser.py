"""Momentum with the learning rate inside the buffer, as MXNet has it."""

import torch
from torch import Tensor
from torch.optim import Optimizer


class Momentum(Optimizer):
    """v ← 0.9·v − lr·(g + wd·w), then w ← w + v.

    torch.optim.SGD keeps the rate outside, v ← 0.9·v + g and w ← w − lr·v, which is the same as long as the rate does
    not change, but when it falls takes what was gathered at the higher rate down with it.

    Args:
        params: parameters or groups of them, each with its own lr and weight_decay if given.
    """

    def __init__(self, params, lr: float, momentum: float = 0.9, weight_decay: float = 0.0):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None) -> Tensor | None:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["velocity"] = torch.zeros_like(parameter)
                velocity = state["velocity"].mul_(group["momentum"])
                velocity.add_(parameter.grad, alpha=-group["lr"])
                velocity.add_(parameter, alpha=-group["lr"] * group["weight_decay"])
                parameter.add_(velocity)
        return loss

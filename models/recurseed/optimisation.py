"""What an optimiser is told: groups of parameters and learning rate; and the moving average of the weights."""

import math
from typing import NamedTuple

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class ParameterGroups(NamedTuple):
    """The release's four groups: name contains `model` or not, contains `weight` (BatchNorm's included) or not."""

    backbone_weights: list[nn.Parameter]
    backbone_biases: list[nn.Parameter]
    new_weights: list[nn.Parameter]
    new_biases: list[nn.Parameter]


def parameter_groups(network: nn.Module) -> ParameterGroups:
    """The parameters of a RecurSeedNetwork, each in exactly one group."""
    groups = ParameterGroups([], [], [], [])
    for name, parameter in network.named_parameters():
        groups[2 * ("model" not in name) + ("weight" not in name)].append(parameter)
    return groups


def average_decay(step: int, decay: float = 0.9999) -> float:
    """Decay of the moving average at step t = 1, 2, …: decay·(1 − exp(−t/2000)), so that it forgets the start."""
    return decay * (1 - math.exp(-step / 2000))


@torch.no_grad()
def update_average(average: nn.Module, network: nn.Module, step: int, decay: float = 0.9999) -> None:
    """average ← d·average + (1 − d)·network, floating buffers included; counters are copied.

    Args:
        average: of the same keys, a deep copy of the network at first.
        step: t, counted from 1; call it after the optimiser's step.
    """
    ours, theirs = average.state_dict(), network.state_dict()
    floating = [key for key, value in ours.items() if value.is_floating_point()]
    for key in ours.keys() - set(floating):
        ours[key].copy_(theirs[key])
    blend = get_ema_multi_avg_fn(average_decay(step, decay))
    blend([ours[key] for key in floating], [theirs[key] for key in floating], step)

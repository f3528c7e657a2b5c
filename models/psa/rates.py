"""Learning rates of PSA's networks."""

from torch import nn


def parameter_groups(network: nn.Module, new: tuple[str, ...]) -> list[tuple[list[nn.Parameter], float]]:
    """Parameters with their factors on the learning rate: ×10 for new layers, ×2 for biases (PSA)."""
    chosen: dict[float, list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        factor = (10.0 if name.startswith(new) else 1.0) * (2.0 if name.endswith("bias") else 1.0)
        chosen.setdefault(factor, []).append(parameter)
    return [(parameters, factor) for factor, parameters in chosen.items()]

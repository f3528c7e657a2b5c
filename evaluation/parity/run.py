"""What the parity checks of all systems share: golden inputs on a device, made-up weights, rows to compare."""

import zlib
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

VALUES, CRF, GRADIENTS, MASK, EXACT = "values", "crf", "gradients", "mask", "exact"


class Row(NamedTuple):
    key: str
    value: np.ndarray
    kind: str


class Run(NamedTuple):
    golden: dict[str, np.ndarray]
    device: torch.device
    dtype: torch.dtype

    def tensor(self, key: str) -> Tensor:
        return torch.from_numpy(self.golden[key]).to(self.device)

    def has(self, *keys: str) -> bool:
        return any(key in self.golden for key in keys)

    def autocast(self):
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)


def fill(network: nn.Module) -> nn.Module:
    """Give every tensor the made-up values that its state-dict key determines (the golden files' rule)."""
    state = network.state_dict()
    for key, tensor in state.items():
        if key.endswith("num_batches_tracked"):
            continue
        x = np.random.RandomState(zlib.crc32(key.encode())).standard_normal(tuple(tensor.shape)).astype(np.float32)
        if x.ndim == 4:
            x = x * 0.7 * np.sqrt(2 / np.prod(x.shape[1:]))
        elif key.endswith("running_var"):
            x = 1 + 0.1 * np.abs(x)
        elif key.endswith(".weight"):
            x = 1 + 0.1 * x
        else:
            x = 0.1 * x
        state[key] = torch.from_numpy(x.astype(np.float32))
    network.load_state_dict(state)
    return network.eval()


def sampled(x: Tensor, count: int = 257) -> np.ndarray:
    """[mean, std, max |.|] and `count` values spread over the flattened array."""
    flat = x.double().flatten().cpu()
    places = np.linspace(0, len(flat) - 1, count).astype(np.int64)
    summary = torch.stack([flat.mean(), flat.std(correction=0), flat.abs().max()])
    return torch.cat([summary, flat[torch.from_numpy(places)]]).numpy()


def numpy(x: Tensor) -> np.ndarray:
    return x.detach().cpu().numpy()

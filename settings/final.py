"""Settings of the final networks: what papers train on their seeds, in mode 4, and how mode 3 evaluates it.

`--network` sets the values of other settings that are published for it; their own flags win over it.
"""

from dataclasses import dataclass

from settings.crf import KERNELS, SHARED
from settings.field import RUN, setting

NETWORKS = ("resnet38", "deeplabv2", "deeplabv3plus")
FINAL = ("mode 4", "mode 3")
_CRF = dict(zip(SHARED, vars(KERNELS["deeplab"]).values(), strict=True))
# Of the published sizes. A multiple of 8 takes the place of 321 and 513; images become squares, as in all of mode 4.
PUBLISHED = {
    "resnet38": {},
    # Chen et al., TPAMI 2018, with ResNet-101: 20,000 steps of 10 images, which are 19 epochs of VOC's 10,582; three
    # scales; CRF. Sides: 321 times the published 0.5 to 1.5 of the images' 500 pixels, at least the crop.
    "deeplabv2": {
        "crop": 320, "static_side": (320, 752), "bn": 10, "static_epochs": 19, "lr": 2.5e-4, "momentum": 0.9,
        "weight_decay": 5e-4, "eval_size": 512, "eval_scales": (0.5, 0.75, 1.0),
    },
    # Chen et al., ECCV 2018: 30,000 steps of 16 images, 45 epochs; scales and mirrors of its best figure. It is
    # published without a CRF; that of DeepLab-v2 is used for the second column.
    "deeplabv3plus": {
        "crop": 512, "static_side": (512, 1000), "bn": 16, "static_epochs": 45, "lr": 7e-3, "momentum": 0.9,
        "weight_decay": 4e-5, "eval_size": 512, "eval_scales": (0.5, 0.75, 1.0, 1.25, 1.5, 1.75),
    },
}  # fmt: skip
# The embedded data: sizes of the preset; from scratch, so a higher rate where BatchNorm bears it.
DEMO = {
    "resnet38": {},
    "deeplabv2": {"momentum": 0.9, "weight_decay": 5e-4, "lr": 1e-2, "static_epochs": 12, "eval_scales": (0.75, 1.0)},
    "deeplabv3plus": {"momentum": 0.9, "weight_decay": 4e-5, "bn": 8, "lr": 0.2, "static_epochs": 24},
}


@dataclass(frozen=True)
class Final:
    """final network, modes 4 and 3 with --seed_source"""

    network: str = setting(
        "resnet38", RUN, NETWORKS, FINAL, "that mode 4 trains; sets the published values for it (settings/final.py)"
    )
    poly_power: float = setting(
        0.9, RUN, (1e-3, 1e3), ("mode 4",), "of the poly schedule of both DeepLabs (their papers)"
    )


def values_for(network: str, preset: str) -> dict:
    """The settings that `--network` stands for."""
    if network == "resnet38":
        return {}
    return (DEMO if preset == "demo" else PUBLISHED)[network] | _CRF

"""The dense CRF's settings by name, each with its source, and which of them made a result.

Every source gives 10 iterations where masks are made; SSDD's training step takes 3.
"""

from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class CrfKernel:
    """The pairwise terms (Krähenbühl and Koltun, 2011), by default PSA's. Distances in pixels, colours in 0…255."""

    gaussian_sxy: float = 3.0
    gaussian_weight: float = 3.0
    bilateral_sxy: float = 80.0
    bilateral_srgb: float = 13.0
    bilateral_weight: float = 10.0


KERNELS = {
    # Ahn and Kwak, CVPR 2018: the CRF of their label chain.
    "psa": CrfKernel(),
    # Shimoda and Yanai, ICCV 2019, released program: PSA's, in training, label making and evaluation. ICD's too
    # (Fan et al., CVPR 2020, released program).
    "ssdd": CrfKernel(),
    # Jo, Yu and Kim, arXiv 2204.06754, the inference program of its later version.
    "recurseed": CrfKernel(1.0, 3.0, 67.0, 3.0, 4.0),
    # Chen et al., TPAMI 2018 (DeepLab-v2), with ResNet-101. The paper gives the ranges that were searched (bilateral
    # weight 3 to 6, 30 to 100 pixels, 3 to 6 colour steps); its re-implementations hand these values on.
    "deeplab": CrfKernel(1.0, 3.0, 67.0, 3.0, 4.0),
}
ITERATIONS = 10
# The fields of a Config that hold a kernel, in CrfKernel's order, of all systems but RecurSeed and of RecurSeed.
SHARED = ("crf_gaussian_sxy", "crf_gaussian_weight", "crf_sxy", "crf_srgb", "crf_bilateral_weight")
RECURSEED = tuple(f"recurseed_{name}" for name in SHARED)
# Stages with a CRF: the field of its iterations, and those of its kernel.
STAGES = {
    "make_cam_labels": ("crf_labels", SHARED),
    "make_aff_labels": ("crf_labels", SHARED),
    "make_icd_labels": ("crf_icd", SHARED),
    "mode 2": ("crf_train", SHARED),
    "mode 3": ("crf_eval", SHARED),
    "recurseed labels": ("recurseed_crf", RECURSEED),
    "recurseed evaluate": ("recurseed_crf", RECURSEED),
}


def values_of(name: str) -> dict[str, float]:
    """The settings of all systems that `--crf_setting=name` stands for."""
    kernel = asdict(KERNELS[name]).values()
    return dict(zip((*SHARED, *RECURSEED), (*kernel, *kernel), strict=True))


def names_of(kernel: CrfKernel) -> str:
    """All names of a kernel's values, such as "psa, ssdd"; "own" if they have none."""
    return ", ".join(name for name, known in KERNELS.items() if known == kernel) or "own"


def noted(kernel: CrfKernel, iterations: int) -> dict:
    """What a result says of its CRF."""
    return {"setting": names_of(kernel), "iterations": iterations} | asdict(kernel)


def used_by(stage: str, stored: dict) -> dict | None:
    """The CRF that a stage ran with, by the settings that it stored; None if it has none or stored none."""
    if stage not in STAGES:
        return None
    iterations, fields = STAGES[stage]
    if any(not isinstance(stored.get(name), int | float) for name in (iterations, *fields)):
        return None
    return noted(CrfKernel(*(float(stored[name]) for name in fields)), int(stored[iterations]))


def as_text(note: dict) -> str:
    """One line for people."""
    return (
        f"CRF {note['setting']}: {note['iterations']} iterations, Gaussian {note['gaussian_sxy']:g} pixels × "
        f"{note['gaussian_weight']:g}, bilateral {note['bilateral_sxy']:g} pixels, {note['bilateral_srgb']:g} colour "
        f"steps × {note['bilateral_weight']:g}"
    )

"""Self-Supervised Difference Detection (Shimoda and Yanai, ICCV 2019): training and evaluation.

    python main_ssdd.py --mode=0      train static SSDD: PSA against PSA+CRF
    python main_ssdd.py --mode=1      store the static difference maps
    python main_ssdd.py --mode=2      train dynamic SSDD, the segmentation network end to end
    python main_ssdd.py --mode=3      multi-scale inference, CRF, mIoU
    python main_ssdd.py --mode=all    all of them in turn
    python main_ssdd.py --mode=3 --split=test --submit=masks.tgz    the same for VOC's evaluation server

    python main_ssdd.py --mode=4 --seed_source=psa    train the segmentation network alone on fixed seeds: psa, psa_crf,
                                                      ssdd (of mode 1), truth, or masks:FOLDER
    python main_ssdd.py --mode=3 --seed_source=psa    evaluate that network
    python main_ssdd.py --mode=4 --seed_source=psa --network=deeplabv3plus --weights=resnet101.pth    another network on
                                                      them, and --mode=3 --seed_source=psa --network=deeplabv3plus

One GPU or the CPU as above; several GPUs:

    torchrun --nproc_per_node=4 main_ssdd.py --mode=0 --bn=8

The labels that mode 0 starts from come from prepare_labels (see README.md).
"""

from datasets.errors import InputError, program
from modes.program import check_submission, run_modes
from modes.ssdd import dynamic, evaluate, fixed, precompute, static
from settings.config import Config

MODES = {"0": static, "1": precompute, "2": dynamic, "3": evaluate, "4": fixed}
ALL = "0123"
TRAINED = "02"


@program
def main(argv: list[str] | None = None) -> None:
    run_modes(argv, __doc__, "ssdd", MODES, ALL, TRAINED, check_mode)


def check_mode(config: Config, mode: str) -> None:
    """Refuse flags that the mode would leave aside."""
    if config.seed_source and mode not in "34":
        raise InputError(f"--seed_source={config.seed_source}: belongs to --mode=4 and to the --mode=3 after it")
    if config.network != "resnet38" and not config.seed_source:
        raise InputError(f"--network={config.network}: belongs to --mode=4 and --mode=3 with --seed_source")
    check_submission(config, mode, "3")


if __name__ == "__main__":
    main()

"""Self-Supervised Difference Detection (Shimoda and Yanai, ICCV 2019): training and evaluation.

    python main_ssdd.py --mode=0      train static SSDD: PSA against PSA+CRF
    python main_ssdd.py --mode=1      store the static difference maps
    python main_ssdd.py --mode=2      train dynamic SSDD, the segmentation network end to end
    python main_ssdd.py --mode=3      multi-scale inference, CRF, mIoU
    python main_ssdd.py --mode=all    all of them in turn

One GPU or the CPU as above; several GPUs:

    torchrun --nproc_per_node=4 main_ssdd.py --mode=0 --bn=2

The labels that mode 0 starts from come from prepare_labels (see README.md).
"""

import dataclasses

from datasets.errors import program
from modes import dynamic, evaluate, precompute, static
from tools import config as settings
from tools import distributed

MODES = {"0": static, "1": precompute, "2": dynamic, "3": evaluate}


@program
def main(argv: list[str] | None = None) -> None:
    parser = settings.Parser(__doc__)
    parser.add_argument("--mode", required=True, choices=[*MODES, "all"], help="see above")
    settings.add_flags(parser)
    arguments = parser.parse_args(argv)
    config = settings.config_from(arguments)
    distributed.start(config.device)
    if distributed.rank() == 0:
        print("config:", " ".join(f"{k}={v!r}" for k, v in dataclasses.asdict(config).items()), flush=True)
    if arguments.mode == "all":
        # --weights is what training starts from; the other modes take what training leaves.
        for mode, module in MODES.items():
            module.run(config if mode in "02" else dataclasses.replace(config, weights=""))
    else:
        MODES[arguments.mode].run(config)
    distributed.stop()


if __name__ == "__main__":
    main()

"""RecurSeed and CertainMix (Jo, Yu and Kim, arXiv 2204.06754): training, seeds and evaluation.

    python main_recurseed.py --mode=train --weights=resnet50-19c8e357.pth    train the network; without --weights from
                                                                             scratch
    python main_recurseed.py --mode=labels      seeds of the training images: the sources recurseed and recurseed_crf
    python main_recurseed.py --mode=evaluate    masks of val without and with CRF, mIoU
    python main_recurseed.py --mode=all         all of them in turn
    python main_recurseed.py --mode=evaluate --weights=THEIRS.pth                 a released state dict
    python main_recurseed.py --mode=evaluate --split=test --submit=masks.tgz      for VOC's evaluation server

One GPU or the CPU as above; four GPUs of one machine, and two machines of four each:

    torchrun --nproc_per_node=4 main_recurseed.py --mode=train
    torchrun --nnodes=2 --nproc_per_node=4 --rdzv_backend=c10d --rdzv_endpoint=FIRST_MACHINE:29500 \\
        main_recurseed.py --mode=train

What other programs make of its seeds: `--seed_source=recurseed` in mode 4 of main_ssdd.py, `--knowledge=recurseed
--advice=recurseed_crf` in its modes 0, 1 and 2. What is published and what is ours: docs/recurseed.md.
"""

import dataclasses

from datasets.errors import InputError, program
from engine import distributed
from modes.recurseed import evaluate, labels, train
from settings.config import Config
from settings.flags import Parser, add_flags, parsed

MODES = {"train": train, "labels": labels, "evaluate": evaluate}


@program
def main(argv: list[str] | None = None) -> None:
    parser = Parser(__doc__)
    parser.add_argument("--mode", required=True, choices=[*MODES, "all"], help="see above")
    add_flags(parser, "recurseed")
    config, arguments = parsed(parser, argv)
    check_mode(config, arguments.mode)
    distributed.start(config.device)
    if distributed.rank() == 0:
        print("config:", " ".join(f"{k}={v!r}" for k, v in dataclasses.asdict(config).items()), flush=True)
    if arguments.mode == "all":
        # --weights is what training starts from; the other modes take what training leaves.
        for mode in MODES:
            MODES[mode].run(config if mode == "train" else dataclasses.replace(config, weights=""))
    else:
        MODES[arguments.mode].run(config)
    distributed.stop()


def check_mode(config: Config, mode: str) -> None:
    """Refuse flags that the mode would leave aside."""
    if config.seed_source:
        raise InputError(f"--seed_source={config.seed_source}: belongs to main_ssdd.py; RecurSeed makes its own seeds")
    if config.submit and (mode not in ("evaluate", "all") or config.split != "test"):
        raise InputError(f"--submit={config.submit}: needs --mode=evaluate --split=test")
    if config.submit and not config.submit.endswith((".tgz", ".tar.gz")):
        raise InputError(f"--submit={config.submit}: must end in .tgz, as VOC's server expects a packed archive")


if __name__ == "__main__":
    main()

"""RecurSeed and CertainMix (Jo, Yu and Kim, arXiv 2204.06754): training, seeds and evaluation.

    python main_recurseed.py --mode=train --weights=resnet50-19c8e357.pth    train the network; without --weights from
                                                                             scratch
    python main_recurseed.py --mode=labels      seeds of the training images: the sources recurseed and recurseed_crf
    python main_recurseed.py --mode=evaluate    masks of val without and with CRF, mIoU
    python main_recurseed.py --mode=all         all of them in turn
    python main_recurseed.py --mode=evaluate --weights=THEIRS.pth                 a released state dict
    python main_recurseed.py --mode=evaluate --split=test --submit=masks.tgz      for VOC's evaluation server
    python main_recurseed.py --mode=all --recurseed_from=101 --recurseed_maps=cam   classification alone, its CAM

One GPU or the CPU as above; four GPUs of one machine, and two machines of four each:

    torchrun --nproc_per_node=4 main_recurseed.py --mode=train
    torchrun --nnodes=2 --nproc_per_node=4 --rdzv_backend=c10d --rdzv_endpoint=FIRST_MACHINE:29500 \\
        main_recurseed.py --mode=train

What other programs make of its seeds: `--seed_source=recurseed` in mode 4 of main_ssdd.py, `--knowledge=recurseed
--advice=recurseed_crf` in its modes 0, 1 and 2. What is published and what is ours: docs/recurseed.md.
"""

from datasets.errors import InputError, program
from modes.program import check_submission, run_modes
from modes.recurseed import evaluate, labels, train
from settings.config import Config

MODES = {"train": train, "labels": labels, "evaluate": evaluate}


@program
def main(argv: list[str] | None = None) -> None:
    run_modes(argv, __doc__, "recurseed", MODES, tuple(MODES), ("train",), check_mode)


def check_mode(config: Config, mode: str) -> None:
    """Refuse flags that the mode would leave aside."""
    if config.seed_source:
        raise InputError(f"--seed_source={config.seed_source}: belongs to main_ssdd.py; RecurSeed makes its own seeds")
    epochs = config.epochs or config.recurseed_epochs
    if mode != "train" and not config.weights and config.recurseed_from > epochs and config.recurseed_maps == "decoder":
        raise InputError(
            f"--recurseed_from={config.recurseed_from}: the decoder, which makes the masks, learns nothing in {epochs} "
            "epochs; give --recurseed_maps=cam"
        )
    check_submission(config, mode, "evaluate")


if __name__ == "__main__":
    main()

"""What main_ssdd.py and main_recurseed.py share: the flag --mode, and one mode or all of them in turn."""

import dataclasses
from collections.abc import Callable, Sequence
from types import ModuleType

from datasets.errors import InputError
from datasets.files import refuse_among_others, refuse_overwrite
from engine import distributed
from settings.config import Config
from settings.flags import Parser, add_flags, parsed


def run_modes(
    argv: list[str] | None,
    text: str,
    system: str,
    modes: dict[str, ModuleType],
    every: Sequence[str],
    trained: Sequence[str],
    check: Callable[[Config, str], None],
) -> None:
    """Run the mode that the command line names.

    Args:
        text: for --help.
        system: whose settings --help shows.
        modes: a module with `run(config)` each.
        every: what --mode=all runs, in this order.
        trained: of those, the ones that start from --weights; the others take what these leave.
        check: raises an InputError at flags that a mode would leave aside.
    """
    parser = Parser(text)
    parser.add_argument("--mode", required=True, choices=[*modes, "all"], help="see above")
    add_flags(parser, system)
    config, arguments = parsed(parser, argv)
    check(config, arguments.mode)
    distributed.start(config.device, precision=config.precision)
    if distributed.rank() == 0:
        print("config:", " ".join(f"{k}={v!r}" for k, v in dataclasses.asdict(config).items()), flush=True)
    if arguments.mode == "all":
        for mode in every:
            modes[mode].run(config if mode in trained else dataclasses.replace(config, weights=""))
    else:
        modes[arguments.mode].run(config)
    distributed.stop()


def check_submission(config: Config, mode: str, evaluating: str) -> None:
    """Refuse --submit where no masks of the test images are made, and names that VOC's server would not take.

    Args:
        evaluating: the mode that makes them.
    """
    if config.submit and (mode not in (evaluating, "all") or config.split != "test"):
        raise InputError(f"--submit={config.submit}: needs --mode={evaluating} --split=test")
    if config.submit and not config.submit.endswith((".tgz", ".tar.gz")):
        raise InputError(f"--submit={config.submit}: must end in .tgz, as VOC's server expects a packed archive")
    if config.submit:
        refuse_among_others(config.submit)
        refuse_overwrite([config.submit], [config.weights] if config.weights else [])

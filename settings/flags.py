"""The command line: one flag a setting, and the Config that given flags ask for."""

import argparse
import sys
import types
import typing
from dataclasses import replace
from typing import NoReturn

from settings.config import FIELDS, GROUPS, TYPES, Config, check, preset, shown, with_crf, with_network, with_recipe
from settings.crf import KERNELS
from settings.field import MACHINE, RUN
from settings.final import NETWORKS


class Parser(argparse.ArgumentParser):
    """Reports a bad flag in one line, as every other bad input; the usage of all flags would hide it."""

    def __init__(self, description: str = "", **options):
        formatter = argparse.RawDescriptionHelpFormatter
        module = sys.modules["__main__"].__spec__  # None where a file was started
        if module is not None:
            options.setdefault("prog", f"python -m {module.name.removesuffix('.__main__')}")
        super().__init__(description=description, formatter_class=formatter, allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        line = f"error: {' '.join(message.split())[:300]}; see --help"
        print(line.encode(errors="replace").decode(), file=sys.stderr)
        sys.exit(2)


def add_flags(parser: argparse.ArgumentParser, *systems: str) -> None:
    """One flag a setting. Those of other systems are taken too, as runs hand all their flags on, but not shown.

    Args:
        systems: of GROUPS, whose settings `--help` shows beside the common ones.
    """
    parser.usage = "%(prog)s [flags]"
    for system, groups in GROUPS.items():
        seen = system in ("common", *systems)
        for group in groups:
            added = parser.add_argument_group(group.__doc__) if seen else parser
            for name in group.__annotations__:
                _add_flag(added, name, seen)
    others = ", ".join(system for system in GROUPS if system not in ("common", *systems))
    if others:
        parser.epilog = f"Settings of the other systems ({others}) are taken too; their own programs show them."


def _add_flag(group: argparse._ActionsContainer, name: str, seen: bool) -> None:
    """The flag of one setting, in both spellings; what is not given is absent from the parsed arguments."""
    entry, kind = FIELDS[name], TYPES[name]
    names = dict.fromkeys([f"--{name.replace('_', '-')}", f"--{name}"])
    options: dict = {"dest": name, "default": argparse.SUPPRESS}
    text = entry.metadata["help"].replace("%", "%%")
    options["help"] = f"{text} (default: {shown(entry.default)})" if seen else argparse.SUPPRESS
    if kind is bool:
        options["action"] = argparse.BooleanOptionalAction
    elif isinstance(entry.default, tuple):
        options |= {"nargs": 2 if kind == tuple[int, int] else "+", "type": typing.get_args(kind)[0]}
    else:
        options["type"] = typing.get_args(kind)[0] if isinstance(kind, types.UnionType) else kind
        bounds = entry.metadata["bounds"]
        options["metavar"] = (
            "|".join(bounds) if options["type"] is str and bounds and isinstance(bounds, tuple) else "X"
        )
    group.add_argument(*names, **options)


def config_from(arguments: argparse.Namespace) -> Config:
    """The Config that parsed flags ask for.

    Raises:
        ValueError: a value cannot work; the message names the flag.
    """
    given = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in vars(arguments).items()
        if name in FIELDS
    }
    empty = next((name for name, value in given.items() if value in ((), "--")), None)  # argparse takes --X=-- for none
    if empty:
        raise ValueError(f"--{empty}: needs a value")
    config = with_recipe(preset(given.get("preset", "voc")), given.get("recipe", "paper"))
    if given.get("network") in NETWORKS:
        config = with_network(config, given["network"])
    if given.get("crf_setting") in KERNELS:  # `check` refuses the others
        config = with_crf(config, given["crf_setting"])
    config = replace(config, **given)
    check(config)
    return config


def parse(argv: list[str] | None, description: str, *systems: str) -> Config:
    """The Config of a program that has no other arguments; bad flags end it with one line and status 2."""
    parser = Parser(description)
    add_flags(parser, *systems)
    return parsed(parser, argv)[0]


def parsed(parser: Parser, argv: list[str] | None) -> tuple[Config, argparse.Namespace]:
    """Config and arguments of a program that has arguments of its own."""
    arguments = parser.parse_args(argv)
    try:
        return config_from(arguments), arguments
    except ValueError as error:
        parser.error(str(error))


def flags_of(config: Config, reaches: tuple[str, ...] = (RUN, MACHINE)) -> list[str]:
    """The flags that make this Config from its preset and recipe; without others, those that the next stage needs."""
    own = with_recipe(preset(config.preset), config.recipe)
    own = with_crf(with_network(own, config.network), config.crf_setting)
    own = replace(own, network=FIELDS["network"].default, crf_setting="")
    flags = [
        f"--{name}={getattr(config, name)}"
        for name in ("preset", "recipe")
        if getattr(config, name) != FIELDS[name].default
    ]
    for name, entry in FIELDS.items():
        value, spelling = getattr(config, name), name.replace("_", "-")
        if value == getattr(own, name) or entry.metadata["reach"] not in reaches:
            continue
        if isinstance(value, bool):
            flags.append(f"--{'' if value else 'no-'}{spelling}")
        elif isinstance(value, tuple):
            flags += [f"--{spelling}", *map(str, value)]
        else:
            flags.append(f"--{spelling}={value}")
    return flags

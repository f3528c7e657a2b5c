"""Seed sources by name: what stands for an image's mask, and who makes it."""

from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np

from datasets.errors import InputError
from datasets.seed_store import load_maps, read_seed, seed_path
from datasets.voc import IGNORE, class_names, image_size, mask_path, read_present
from engine import runs, stages
from settings.config import Config

OLD_NAMES = {"crf": "psa_crf"}  # of mode 4, before knowledge and advice had names


@dataclass(frozen=True)
class SeedSource:
    name: str
    title: str  # for people
    folder: Path
    stage: str = ""  # that writes it; empty: others made it
    ending: str = ".png"  # of its files: masks, or stored maps (.npz)


def source(config: Config, name: str) -> SeedSource:
    """The source of a run that a flag names: one that a stage writes, `truth`, `masks:FOLDER`, or `segments:FOLDER`, of
    which a stage makes masks.

    Raises:
        InputError: there is no such source; the message names the known ones.
    """
    written = stages.sources()
    known, title = OLD_NAMES.get(name, name), ""
    if name.startswith(stages.SEGMENTS):
        regions = Path(name.removeprefix(stages.SEGMENTS))
        if not regions.is_dir():
            raise InputError(f"{name}: there is no folder {regions}; it must hold the regions of every training image")
        known, title = "segments", f"segments of {regions.name}"
    if known in written:
        stage, seeds = written[known]
        folder = Path(config.out) / stages.filled(seeds.folder, config.modelid)
        return SeedSource(name, title or seeds.title, folder, stage, seeds.ending)
    if name == stages.TRUTH:
        return SeedSource(name, "true masks", mask_path(config.voc_root, "").parent)
    if name.startswith(stages.MASKS) or "/" in name:
        path = Path(name.removeprefix(stages.MASKS))
        if not path.is_dir():
            raise InputError(f"{name}: there is no folder {path}; it must hold a mask ID.png for every training image")
        return SeedSource(name, path.name, path)
    raise InputError(f"there is no seed source {name!r}; known are {known_names()}")


def known_names() -> str:
    return ", ".join([*stages.sources(), stages.TRUTH, f"{stages.MASKS}FOLDER"])


def segments_folder(config: Config) -> Path | None:
    """The folder of regions that an adviser names; None if none does.

    Raises:
        InputError: the knowledge is to be one, which knows no classes, or two advisers are.
    """
    named = [name.removeprefix(stages.SEGMENTS) for name in config.advisers if name.startswith(stages.SEGMENTS)]
    if config.knowledge.startswith(stages.SEGMENTS):
        raise InputError(f"--knowledge={config.knowledge}: regions have no classes of their own; name them as --advice")
    if len(named) > 1:
        raise InputError(f"--advice={config.advice}: put all regions into one folder, they may overlap")
    return Path(named[0]) if named else None


def pair(config: Config) -> dict[str, SeedSource]:
    """Knowledge and advice of static SSDD, by the names that their masks have in a sample; of several advisers the
    second is `advice2`, and so on.

    Raises:
        InputError: one is unknown, or two are the same masks.
    """
    names = ["knowledge", "advice", *(f"advice{n}" for n in range(2, len(config.advisers) + 1))]
    found = dict(zip(names, (source(config, name) for name in (config.knowledge, *config.advisers)), strict=True))
    flags: dict[Path, str] = {}
    for name, one in found.items():
        flag = f"--{'knowledge' if name == 'knowledge' else 'advice'}={one.name}"
        other = flags.setdefault(one.folder.resolve(), flag)
        if other != flag:
            raise InputError(f"{other} and {flag} are the same: name different seed sources")
    return found


def need_pair(config: Config, ids: list[str]) -> dict[str, SeedSource]:
    """`pair`, each of which is complete, and masks of others no copy of another one's.

    Raises:
        InputError: see `pair` and `need`; or two are the same masks under two names.
    """
    found = pair(config)
    for source in found.values():
        need(config, source, ids)
    for one, other in combinations(found.values(), 2):
        if not (one.stage and other.stage) and all(_same_mask(config, one, other, image_id) for image_id in ids):
            raise InputError(f"{one.name} and {other.name} hold the same masks: name different seed sources")
    return found


def _same_mask(config: Config, one: SeedSource, other: SeedSource, image_id: str) -> bool:
    size = image_size(config.voc_root, image_id)
    return np.array_equal(*(read_seed(source.folder, image_id, size).mask() for source in (one, other)))


def need(config: Config, seeds: SeedSource, ids: list[str]) -> None:
    """Check that a source is complete before a long run starts on it; masks that others made are looked at one by one.

    Raises:
        InputError: seeds are missing, have no background, or do not fit their images; the message names the first
            and, where a stage makes them, its command.
    """
    if seeds.stage:
        paths = [seeds.folder / f"{image_id}{seeds.ending}" for image_id in ids]
        runs.need_all(paths, stages.command(config, seeds.stage))
        if seeds.ending == ".npz" and load_maps(paths[0]).classes[0] != 0:
            raise InputError(f"{seeds.name}: its maps have no background, so no mask follows from them; name another")
        return
    paths = [seed_path(seeds.folder, image_id) for image_id in ids]
    missing = [path for path in paths if not path.exists()]
    if missing:
        raise InputError(
            f"{len(missing)} of {len(paths)} masks are missing, first {missing[0].with_suffix('.png')}: put them "
            "there, or name a list whose images have them with --train_split"
        )
    names = class_names(config.voc_root)
    for image_id, path in zip(ids, paths, strict=True):
        seed = read_seed(seeds.folder, image_id, image_size(config.voc_root, image_id), None, len(names))
        present = read_present(config.voc_root, image_id)
        strange = [c for c in seed.classes.tolist() if c != IGNORE and not present[c]]
        if strange and seeds.name != stages.TRUTH:
            raise InputError(f"{path} shows {names[strange[0]]}, which the label of its image does not name; mend one")

"""Seed sources by name: what stands for an image's mask, and who makes it."""

from dataclasses import dataclass
from pathlib import Path

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
    """The source of a run that a flag names: one that a stage writes, `truth`, or `masks:FOLDER`.

    Raises:
        InputError: there is no such source; the message names the known ones.
    """
    written = stages.sources()
    known = OLD_NAMES.get(name, name)
    if known in written:
        stage, seeds = written[known]
        folder = Path(config.out) / stages.filled(seeds.folder, config.modelid)
        return SeedSource(name, seeds.title, folder, stage, seeds.ending)
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


def pair(config: Config) -> tuple[SeedSource, SeedSource]:
    """Knowledge and advice of static SSDD.

    Raises:
        InputError: one is unknown, or both are the same masks.
    """
    knowledge, advice = source(config, config.knowledge), source(config, config.advice)
    if knowledge.folder.absolute() == advice.folder.absolute():
        raise InputError(f"--knowledge={knowledge.name} and --advice={advice.name} are the same: name two seed sources")
    return knowledge, advice


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

"""Every program on a small data set; training that is stopped and goes on; two processes against one; equal runs."""

import re
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from engine import checkpoint, stages
from settings.config import Config, check, demo
from settings.field import MACHINE, RUN, STAGE, START
from settings.flags import flags_of
from tools.check_gpu.trial import FAILS, IMPOSSIBLE, LONGEST, WORKS, Place, Verdict, ended, run, start

IMAGES = 6  # of the small data set
# Two undisturbed runs may differ on a GPU, where sums are not always taken in one order; a third one by a few times
# that. The floor is for two that happen to be equal. CPUs repeat themselves to the bit.
TIMES_APART, LEAST_APART = 10, 1e-6
# On a CPU rounding gave 5.8e-7, gradients that are not averaged 1.5e-4; with batches of 2 rounding gives 3.7e-6. Means
# over each process's own pixels, 5.8e-7 too here, are what tests/test_distributed.py looks for.
PROCESSES_BATCH, PROCESSES_APART = 4, 1e-5
MOVED = 5e-5  # weights that learn move by more, else a comparison would say nothing


# Of the demo preset's networks and pictures, so that every program ends in seconds; the tests take them too.
SIZES = {
    "width": 0.0625,
    "recurseed_width": 0.0625,
    "head_dilation": 1,
    "crop": 64,
    "static_side": (64, 72),
    "dynamic_side": (64, 80),
    "cls_side": (64, 80),
    "eval_size": 64,
    "eval_scales": (0.5, 1.0),
    "cam_scales": (0.5,),
    "lr": 1e-6,
    "warmup_epochs": 0.0,
    "pictures": 2,
    "icd_width": 0.0625,
    "icd_crop": 49,
    "recurseed_crop": 64,
    "recurseed_side": (48, 80),
    "recurseed_scales": (1.0, 0.5),
    "certain": 0.3,
}


def small(place: Place, **fields) -> Config:
    """Every program in seconds, on the training images of the scratch folder."""
    config = replace(
        demo(),
        voc_root=str(place.scratch / "VOC2012"),
        out=str(place.scratch / "out"),
        device=str(place.device),
        workers=2 if place.on_gpu else 0,
        crf_workers=place.on_gpu,
        **SIZES,
        bn=2,
        cls_batch=2,
        aff_batch=2,
        static_epochs=2,
        dynamic_epochs=2,
        cls_epochs=2,
        aff_epochs=2,
        eval_batch=2,
        icd_epochs=2,
        icd_batch=2,
        recurseed_epochs=3,
        recurseed_batch=2,
        recurseed_from=2,
        mix_from=3,
    )
    config = replace(config, **fields)
    check(config)
    return config


def command(config: Config, words: str) -> list[str]:
    """What follows `python`: a program of this project with every flag of a Config."""
    return [*words.split(), *flags_of(config, (RUN, STAGE, MACHINE, START))]


def program_verdicts(place: Place) -> Iterator[Verdict]:
    """Every program of every system on a small data set."""
    config = small(place)
    for system in (stages.PSA, stages.ICD):
        for name in system:
            yield run(place, name, command(config, stages.STAGES[name].command))
    yield run(place, "modes 0 to 3", command(config, "main_ssdd.py --mode=all"))
    yield run(place, "mode 2, exact CRF", command(replace(config, crf="exact", fresh=True), "main_ssdd.py --mode=2"))
    yield run(place, "mode 4", command(replace(config, seed_source="psa"), "main_ssdd.py --mode=4"))
    yield run(place, "RecurSeed", command(config, "main_recurseed.py --mode=all"))
    weights = stages.checkpoint_path(stages.folder(config, "mode 2"), "seg", config.dynamic_epochs)
    photos = Path(config.voc_root) / "JPEGImages"
    use = ["-m", "tools.predict", str(photos), "--weights", str(weights), "--out", str(place.scratch / "masks")]
    yield run(place, "predict", [*use, "--device", str(place.device)])


def learning(place: Place, name: str, **fields) -> Config:
    """A run of mode 0 whose weights move enough to be compared."""
    found = {"modelid": name, "bn": 2, "lr": 2e-5, "static_epochs": 10, "precision": "float32", "workers": 0}
    return small(place, **(found | fields))


def need_seeds(place: Place) -> Verdict | None:
    """What fails where the labels that mode 0 learns from cannot be made."""
    config = small(place)
    last = stages.folder(config, "make_aff_labels", 1)
    for name in stages.PSA if len(list(last.glob("*.npz"))) < IMAGES else ():
        made = run(place, name, command(config, stages.STAGES[name].command))
        if made.verdict != WORKS:
            return made
    return None


def trained(config: Config) -> dict[str, torch.Tensor]:
    return checkpoint.load_state(stages.checkpoint_path(stages.folder(config, "mode 0"), "seg", config.static_epochs))


def apart(one: Config, other: Config) -> float:
    """The largest difference of two runs' weights."""
    pair = trained(one), trained(other)
    return max(float((pair[0][key].float() - pair[1][key].float()).abs().max()) for key in pair[0])


def moved(config: Config) -> float:
    """The largest difference of a run's backbone from where it started."""
    first, last = checkpoint.load_state(stages.label_network(config, "train_cls")), trained(config)
    return max(float((last[f"encoder.{key}"] - value).abs().max()) for key, value in first.items() if "fc8" not in key)


def undisturbed(place: Place, batch: int = 2) -> tuple[Verdict | None, float]:
    """Two equal runs of mode 0 and how far their weights are apart; a verdict where that cannot be told.

    A CPU repeats itself to the bit, so one run is enough there.
    """
    failed = need_seeds(place)
    whole, again = (learning(place, f"{name}{batch}", bn=batch) for name in ("whole", "again"))
    for config in (whole, again) if place.on_gpu else (whole,):
        if failed is None and not stages.checkpoint_path(stages.folder(config, "mode 0"), "seg", 10).exists():
            made = run(place, f"mode 0, {config.modelid}", command(config, "main_ssdd.py --mode=0"))
            failed = made if made.verdict != WORKS else None
    if failed is not None:
        return failed, 0.0
    if moved(whole) < MOVED:
        return Verdict(f"mode 0, {whole.modelid}", FAILS, f"its weights moved by {moved(whole):.1e} only"), 0.0
    return None, apart(whole, again) if place.on_gpu else 0.0


def compared(place: Place, what: str, config: Config, noise: float, floor: float) -> Verdict:
    """Whether a run ended where the undisturbed one did."""
    whole = learning(place, f"whole{config.bn}", bn=config.bn)
    distance, allowed = apart(whole, config), max(floor, TIMES_APART * noise)
    why = f"weights {distance:.1e} apart, allowed {allowed:.1e} "
    why += f"(two equal runs: {noise:.1e}; learning: {moved(whole):.1e})"
    return Verdict(what, WORKS if distance <= allowed else FAILS, why)


def resume_verdicts(place: Place) -> Iterator[Verdict]:
    """A run that SIGTERM stops within an epoch, and the same command again."""
    what = "saving and going on within an epoch"
    failed, noise = undisturbed(place)
    if failed is not None:
        yield failed._replace(what=f"{what}, {failed.what}")
        return
    config = learning(place, "stopped", checkpoint_every=1e-9)
    arguments = command(config, "main_ssdd.py --mode=0")
    process = start(place, "mode 0, stopped", arguments)
    state, until = stages.folder(config, "mode 0") / "state.pth", time.monotonic() + LONGEST
    while not state.exists() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.01)
    process.terminate()
    status, said = ended(place, "mode 0, stopped", process)
    if status != 128 + signal.SIGTERM or not re.search(r"stopped by SIGTERM after \d+ epochs and \d+ of", said):
        yield Verdict(what, FAILS, f"SIGTERM gave exit status {status} ({place.raw('mode 0, stopped').name})")
        return
    made = run(place, "mode 0, gone on", arguments)
    floor = LEAST_APART if place.on_gpu else 0
    yield compared(place, what, config, noise, floor) if made.verdict == WORKS else made


def process_verdicts(place: Place) -> Iterator[Verdict]:
    """Two processes against one with the same batches: on NCCL where there are two GPUs, on a CPU on gloo."""
    what = f"two processes on {'NCCL' if place.on_gpu else 'gloo'} against one"
    if place.on_gpu and torch.cuda.device_count() < 2:
        yield Verdict(what, IMPOSSIBLE, "each process needs a GPU of its own, and there is one")
        return
    failed, noise = undisturbed(place, PROCESSES_BATCH)
    if failed is not None:
        yield failed._replace(what=f"{what}, {failed.what}")
        return
    config = learning(place, "two", bn=PROCESSES_BATCH, device=place.device.type)
    torchrun = "-m torch.distributed.run --standalone --nproc_per_node=2 main_ssdd.py --mode=0"
    made = run(place, "mode 0, two processes", command(config, torchrun))
    yield compared(place, what, config, noise, PROCESSES_APART) if made.verdict == WORKS else made


def deterministic_verdicts(place: Place) -> Iterator[Verdict]:
    """How far two equal runs with --deterministic are apart; reflection padding keeps them from being equal."""
    what = "--deterministic"
    if not place.on_gpu:
        yield Verdict(what, IMPOSSIBLE, "it chooses kernels of CUDA; a CPU repeats itself")
        return
    failed, noise = undisturbed(place)
    pair = [learning(place, f"deterministic{number}", deterministic=True) for number in (1, 2)]
    for config in pair if failed is None else ():
        made = run(place, f"mode 0, {config.modelid}", command(config, "main_ssdd.py --mode=0"))
        failed = failed or (made if made.verdict != WORKS else None)
    if failed is not None:
        yield failed._replace(what=f"{what}, {failed.what}")
        return
    distance = apart(*pair)
    verdict = WORKS if distance <= max(LEAST_APART, TIMES_APART * noise) else FAILS
    yield Verdict(what, verdict, f"weights of two equal runs {distance:.1e} apart, without it {noise:.1e}")

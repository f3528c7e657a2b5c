"""Segment your own pictures with a trained network.

    python -m tools.predict photos/ cat.jpg --weights logs/dssdd_ssdd/models/seg_0041.pth --out masks
    python -m tools.predict photos/ --weights seg_0041.pth --out masks --no-crf --scales 1 --soft
    python -m tools.predict cat.jpg --weights seg_0041.pth --export seg.pt2

Writes, for each picture, NAME.png (class indices with their palette) and NAME_overlay.jpg (mask over picture, with a
legend); with --soft also NAME.npz (a probability a class and pixel). Folders are searched for pictures and keep their
structure. Weights are those of SSDD, RecurSeed or ICD, and say by themselves which. ICD makes seeds: its masks have
unknown pixels (255) where it does not know, and no probabilities. From Python:

    from tools.predict import Predictor
    predictor = Predictor("seg_0041.pth")
    mask = predictor.mask(image)               # image H×W×3 uint8 RGB, mask H×W uint8
    names = [predictor.classes[i] for i in set(mask.flat)]
"""

import argparse
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn

from datasets.errors import InputError, program
from datasets.files import atomic_write, refuse_among_others, refuse_overwrite
from datasets.pictures import ENDINGS, mask_colours, read_photo
from datasets.transforms import MEAN, STD, as_tensor, normalise
from datasets.voc import write_mask
from engine import checkpoint, distributed
from engine.progress import progress
from engine.workers import crf_kernel
from models.crf import dense_crf
from models.icd.network import IcdNetwork
from models.icd.seeds import seed_after_crf, unlabelled_seed
from models.inference import multiscale_probabilities, resize
from models.ssdd.segmentation import SegmentationNetwork
from modes.recurseed import networks as recurseed
from modes.ssdd.networks import final_network
from settings.config import check
from settings.flags import Parser

RESULTS = (".png", "_overlay.jpg", ".npz")
LARGEST_SIDE = 1600  # pixels; larger pictures are segmented at this size, the mask then enlarged
TITLES = {"ssdd": "SSDD", "recurseed": "RecurSeed", "icd": "ICD"}
# Weights of networks that cannot make a mask of a picture.
NO_MASKS = {
    "psa": "are of a label network of PSA, which makes no masks; give the seg_X.pth of a network trained on its seeds",
    "ddnet": "are of the DD-Net, which makes no masks; give the seg_X.pth beside it",
}
OVERLAY = 0.55  # weight of a class's colour over the picture


class Predictor:
    """A trained segmentation network that takes pictures.

    Args:
        weights: seg_*.pth of mode 2 or mode 0, recurseed_*.pth, or icd_*.pth, which say by themselves what network they
            are of; or a state dict of a published network on VOC.
        device: auto, cpu, cuda or cuda:N.
        scales: of the multi-scale inference, relative to the Config's eval_size (RecurSeed: to the picture; ICD has
            none); None: as in training's Config.
        crf: sharpen masks with a dense CRF, as the published evaluation does.

    Attributes:
        system: whose network it is, ssdd, recurseed or icd.
        classes: names, background first; a mask's values are places in it.
        config: what the network was trained with.

    Raises:
        InputError: the weights or the device cannot be used.
    """

    def __init__(
        self, weights: str | Path, device: str = "auto", scales: tuple[float, ...] | None = None, crf: bool = True
    ):
        self.config, self.classes = checkpoint.load_description(weights)
        self.system = checkpoint.system_of(weights)
        if self.system in NO_MASKS:
            raise InputError(f"{weights}: {NO_MASKS[self.system]}")
        if scales and self.system == "icd":
            raise InputError(f"--scales: {weights} are ICD's, whose inference has a single scale; leave it out")
        if scales:
            name = "recurseed_scales" if self.system == "recurseed" else "eval_scales"
            self.config = replace(self.config, **{name: tuple(scales)})
            try:
                check(self.config)
            except ValueError as error:
                raise InputError(str(error)) from None
        config = self.config
        self.crf, self.device = crf, distributed.start(device)
        self.network = self._filled_network(weights)
        widths = {"icd": config.icd_width, "recurseed": config.recurseed_width}
        width = widths.get(self.system, config.width)
        layout = distributed.memory_format(self.device, width, config.precision)
        self.network.to(self.device, memory_format=layout).eval().requires_grad_(False)

    def _filled_network(self, weights: str | Path) -> nn.Module:
        config, classes = self.config, len(self.classes)
        if self.system == "icd":
            network = IcdNetwork(classes - 1, config.icd_width, config.icd_batchnorm)
            checkpoint.fill_icd(network, checkpoint.load_vgg(weights), weights)
            return network
        if self.system == "recurseed":
            network = recurseed.build(config, classes)
        elif config.network != "resnet38":
            network = final_network(config, classes)
        else:
            network = SegmentationNetwork(
                classes, config.width, config.head_dilation, False, config.dropout, config.backbone_dilation
            )
        checkpoint.load_into(network, weights, unused=("seg_sub.",))
        return network

    def maps(self, image: np.ndarray) -> np.ndarray:
        """Probabilities of the network without CRF.

        Args:
            image: H×W×3 uint8 RGB.

        Returns:
            C×H×W float32, summing to one over the classes. H×W is the image's size, but at most LARGEST_SIDE.

        Raises:
            InputError: the network is ICD's, or makes masks of its CAM.
        """
        size = working_size(image)
        if self.system == "icd":
            raise InputError("--soft: ICD's network makes masks and no probabilities; leave it out")
        if self.system == "recurseed" and self.config.recurseed_maps != "decoder":
            raise InputError("--soft: these weights make masks of their CAM, which is no probability; leave it out")
        if self.system == "recurseed":
            x = recurseed.network_input(self.config, self.device, _shrunk(image, size))
            return recurseed.predicted(self.config, self.network, x).probabilities[0].cpu().numpy()
        summed = self._summed(image)
        return (resize(summed, size)[0] / (2 * len(self.config.eval_scales))).numpy()

    def mask(self, image: np.ndarray) -> np.ndarray:
        """The mask of a picture, with CRF unless the Predictor was made without.

        Args:
            image: H×W×3 uint8 RGB.

        Returns:
            H×W uint8 places in `classes`; of ICD's network also 255, unknown.
        """
        size = working_size(image)
        if self.system == "icd":
            mask = self._icd_mask(_shrunk(image, size))
            return cv2.resize(mask, image.shape[1::-1], interpolation=cv2.INTER_NEAREST)
        if self.system == "recurseed":
            classes, maps = self._recurseed_maps(_shrunk(image, size))
            mask = classes[maps.argmax(axis=0)].astype(np.uint8)
            return cv2.resize(mask, image.shape[1::-1], interpolation=cv2.INTER_NEAREST)
        # The softmax of a sum of probabilities, as in mode 3, so that masks are the same.
        maps = torch.softmax(resize(self._summed(image), size), dim=1)[0].numpy()
        if self.config.network != "resnet38":
            maps = self.maps(image)
        if self.crf:
            maps = dense_crf(_shrunk(image, size), maps, self.config.crf_eval, crf_kernel(self.config))
        mask = maps.argmax(axis=0).astype(np.uint8)
        return cv2.resize(mask, image.shape[1::-1], interpolation=cv2.INTER_NEAREST)

    def _icd_mask(self, image: np.ndarray) -> np.ndarray:
        """The seed H×W that ICD makes, after the CRF unless the Predictor was made without."""
        config = self.config
        with distributed.autocast(self.device, config.precision):
            seed = unlabelled_seed(self.network, as_tensor(image).to(self.device), config.icd_side)
        seed = seed.cpu().numpy().astype(np.uint8)
        if not self.crf:
            return seed
        return seed_after_crf(image, seed, len(self.classes), config.crf_icd, crf_kernel(config))

    def _recurseed_maps(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The classes that RecurSeed finds in a picture, and their maps, as main_recurseed.py makes masks of them."""
        found = recurseed.image_maps(self.config, self.network, self.device, image, None)
        if not self.crf:
            return found.classes, found.maps
        kernel = recurseed.crf_kernel(self.config)
        return found.classes, dense_crf(found.image, found.maps, self.config.recurseed_crf, kernel)

    def _summed(self, image: np.ndarray) -> Tensor:
        x = normalise(self.square(image).to(self.device))
        with torch.inference_mode(), distributed.autocast(self.device, self.config.precision):
            return multiscale_probabilities(self.network, x, self.config.eval_scales).float().cpu()

    def square(self, image: np.ndarray) -> Tensor:
        """What the network is given before normalisation: 1×3×eval_size×eval_size uint8."""
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise ValueError(f"the image is {image.dtype} {image.shape}, needed: uint8 H×W×3")
        side = self.config.eval_size
        return torch.from_numpy(cv2.resize(image, (side, side))).movedim(-1, 0)[None]


def working_size(image: np.ndarray) -> tuple[int, int]:
    """(height, width) at which maps and CRF of a picture are computed."""
    factor = min(1, LARGEST_SIDE / max(image.shape[:2]))
    return tuple(max(1, round(side * factor)) for side in image.shape[:2])


def _shrunk(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return image if image.shape[:2] == size else cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA)


class Exported(nn.Module):
    """What --export writes: 1×3×s×s uint8 RGB, s = eval_size → 1×C×s×s float32, the mean of the softmaxes over scales
    and mirrors. Normalisation is inside; resizing the picture to s×s and the result back is the caller's."""

    def __init__(self, predictor: Predictor):
        super().__init__()
        self.network, self.scales = predictor.network.cpu(), predictor.config.eval_scales
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(STD).view(3, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        x = (image.float() / 255 - self.mean) / self.std
        return multiscale_probabilities(self.network, x, self.scales) / (2 * len(self.scales))


def export(predictor: Predictor, path: Path, images: list[np.ndarray]) -> None:
    """Write the network as a torch.export program and check that the file gives the same masks.

    Raises:
        InputError: it does not, or the file cannot be written.
    """
    if predictor.system != "ssdd":
        whose = TITLES[predictor.system]
        raise InputError(f"--export={path}: only networks of SSDD can be exported, these weights are {whose}'s")
    if path.suffix != ".pt2":
        raise InputError(f"--export={path}: must end in .pt2, it becomes a torch.export program")
    module = Exported(predictor).eval()
    squares = [predictor.square(image) for image in images]
    with torch.no_grad():
        exported = torch.export.export(module, (squares[0],))
        with atomic_write(path) as temporary:
            torch.export.save(exported, temporary)
        again = torch.export.load(path).module()
        pixels = wrong = 0
        for square in squares:
            own, other = module(square).argmax(dim=1), again(square).argmax(dim=1)
            pixels, wrong = pixels + own.numel(), wrong + int((own != other).sum())
    if wrong:
        path.unlink()
        raise InputError(f"--export={path}: the file gives another class at {wrong} of {pixels} pixels; it was removed")
    print(f"wrote {path}: the same masks on {len(images)} pictures ({pixels} pixels)")


def find(inputs: list[Path]) -> dict[Path, Path]:
    """Pictures by the path, without ending, that their results get below the output folder.

    Raises:
        InputError: an input is missing or no picture, a folder has none, or two pictures would get the same results.
    """
    found: dict[Path, Path] = {}
    for given in inputs:
        if given.is_dir():
            pictures = sorted(path for path in given.rglob("*") if path.suffix.lower() in ENDINGS and path.is_file())
            if not pictures:
                raise InputError(f"{given}: there is no picture in this folder ({' '.join(sorted(ENDINGS))})")
        elif given.is_file():
            pictures = [given]
        else:
            raise InputError(f"{given}: there is no such file or folder")
        for path in pictures:
            name = (path.relative_to(given) if given.is_dir() else Path(path.name)).with_suffix("")
            if found.setdefault(name, path) != path:
                raise InputError(f"{path} and {found[name]} would both become {name}.png: rename one")
    return found


def overlay(image: np.ndarray, mask: np.ndarray, classes: tuple[str, ...]) -> Image.Image:
    """The mask's objects coloured in the picture, with white outlines, and a legend of the classes below it."""
    objects = mask > 0
    mixed = image.copy()
    mixed[objects] = ((1 - OVERLAY) * image[objects] + OVERLAY * mask_colours(mask[objects])).astype(np.uint8)
    edge = cv2.morphologyEx(mask, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > 0
    mixed[edge] = 255
    there = [c for c in np.unique(mask).tolist() if 0 < c < len(classes)]
    height, width = mask.shape
    size = max(12, min(32, width // 30))
    font = ImageFont.load_default(size)
    items = [(c, classes[c], int(font.getlength(classes[c])) + 3 * size) for c in there] or [(0, classes[0], width)]
    rows: list[list] = [[]]
    for item in items:
        if rows[-1] and sum(i[2] for i in rows[-1]) + item[2] > width:
            rows.append([])
        rows[-1].append(item)
    canvas = Image.new("RGB", (width, height + len(rows) * 2 * size), "white")
    canvas.paste(Image.fromarray(mixed))
    draw = ImageDraw.Draw(canvas)
    for n, row in enumerate(rows):
        x, y = size // 2, height + n * 2 * size + size // 2
        for c, name, wide in row:
            draw.rectangle((x, y, x + size, y + size), tuple(mask_colours(np.array([c]))[0].tolist()), "black")
            draw.text((x + 3 * size // 2, y + size // 2), name, "black", font, "lm")
            x += wide
    return canvas


def write_results(predictor: Predictor, image: np.ndarray, target: Path, soft: bool) -> None:
    """`target` + .png, _overlay.jpg and, with `soft`, .npz."""
    mask = predictor.mask(image)
    if soft:
        maps = predictor.maps(image).astype(np.float16)
        with atomic_write(target.with_name(target.name + ".npz")) as temporary, open(temporary, "wb") as file:
            np.savez_compressed(file, probabilities=maps, classes=np.array(predictor.classes))
    with atomic_write(target.with_name(target.name + "_overlay.jpg")) as temporary:
        overlay(image, mask, predictor.classes).save(temporary, format="JPEG", quality=90)
    write_mask(target.with_name(target.name + ".png"), mask)


@program
def main(argv: list[str] | None = None) -> None:
    parser = Parser(__doc__)
    parser.add_argument("images", nargs="+", type=Path, help="pictures, and folders of pictures")
    parser.add_argument("--weights", type=Path, required=True, help="seg_*.pth of mode 2, recurseed_*.pth, icd_*.pth")
    parser.add_argument("--out", type=Path, help="folder that receives the results")
    parser.add_argument("--scales", type=float, nargs="+", help="of the inference (default: those of the weights)")
    parser.add_argument("--crf", action=argparse.BooleanOptionalAction, default=True, help="sharpen with a dense CRF")
    parser.add_argument("--soft", action="store_true", help="also write the probabilities of all classes")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    parser.add_argument("--export", type=Path, help="also write the network as a torch.export program, NAME.pt2")
    arguments = parser.parse_args(argv)
    if not (arguments.out or arguments.export):
        raise InputError("give --out, a folder for the masks, or --export")
    found = find(arguments.images)
    targets = [arguments.out / f"{name}{end}" for name in found for end in RESULTS] if arguments.out else []
    for place in filter(None, (arguments.out, arguments.export)):
        refuse_among_others(place)
    refuse_overwrite(targets + ([arguments.export] if arguments.export else []), [*found.values(), arguments.weights])
    predictor = Predictor(arguments.weights, arguments.device, arguments.scales, arguments.crf)
    unreadable: list[InputError] = []
    if arguments.out:
        with progress("predict", len(found), len(found)) as bar:
            for name, path in found.items():
                bar.update()
                try:
                    image = read_photo(path)
                except InputError as error:
                    unreadable.append(error)
                    continue
                write_results(predictor, image, arguments.out / name, arguments.soft)
        print(f"{arguments.weights}: a network of {TITLES[predictor.system]}")
        print(f"wrote masks and overlays of {len(found) - len(unreadable)} pictures to {arguments.out}")
    if arguments.export:
        export(predictor, arguments.export, [read_photo(path) for path in list(found.values())[:3]])
    if unreadable:
        raise InputError(f"{len(unreadable)} of {len(found)} pictures were left out: {unreadable[0]}")


if __name__ == "__main__":
    main()

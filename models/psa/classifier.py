"""The CAM classifier of PSA and its multi-scale class activation maps."""

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from models.inference import resize
from models.resnet38 import ResNet38, he_initialise, scaled


class Classifier(ResNet38):
    """Backbone → dropout → global average pool → fc8, a 1×1 convolution without bias.

    Args:
        classes: number of *foreground* classes.
        width, dropout, dilation: see ResNet38.

    Reference:
        Ahn and Kwak, CVPR 2018.
    """

    def __init__(self, classes: int = 20, width: float = 1.0, dropout: float = 1.0, dilation: int = 4):
        super().__init__(width, dropout, dilation)
        self.fc8 = nn.Conv2d(scaled(4096, width), classes, 1, bias=False)
        self.dropout7 = nn.Dropout2d(0.5 * dropout)
        he_initialise(self)
        nn.init.xavier_uniform_(self.fc8.weight)

    def forward(self, x: Tensor) -> Tensor:
        """N×3×H×W → N×20 logits."""
        conv6 = self.dropout7(self.features(x).conv6)
        return self.fc8(F.adaptive_avg_pool2d(conv6, 1)).flatten(1)

    def cam(self, x: Tensor) -> Tensor:
        """N×3×H×W → N×20×H/8×W/8, ReLU of the class scores at each cell."""
        conv6 = self.features(x).conv6.float()
        with torch.autocast(x.device.type, enabled=False):
            return F.relu(self.fc8(conv6))


def multiscale_cam(
    classifier: Classifier, image: np.ndarray, classes: Tensor, scales: tuple[float, ...], normalise
) -> Tensor:
    """Class activation maps summed over scales and mirrors, each class divided by (its maximum + 1e-5).

    Args:
        classifier: in evaluation mode.
        image: H×W×3 uint8 RGB.
        classes: K foreground indices (0 is the first class after background) that the image has, int64.
        scales: relative to the image; the resize is Pillow's bicubic on the uint8 image.
        normalise: N×3×H×W uint8 → network input (datasets.transforms.normalise).

    Returns:
        K×H×W float32 in 0…1 on the classifier's device.
    """
    return summed_cam(classifier, scaled_images(image, scales), image.shape[:2], classes, normalise)


def scaled_images(image: np.ndarray, scales: tuple[float, ...]) -> list[Tensor]:
    """What the classifier is shown of an image, 1×3×h×w uint8 on the CPU each; see `multiscale_cam`."""
    height, width = image.shape[:2]
    sizes = [(max(1, round(width * scale)), max(1, round(height * scale))) for scale in scales]
    whole = Image.fromarray(image)
    scaled = [np.array(whole.resize(size, Image.Resampling.BICUBIC)) for size in sizes]
    return [torch.from_numpy(pixels).movedim(-1, 0)[None] for pixels in scaled]


@torch.no_grad()
def summed_cam(
    classifier: Classifier, images: list[Tensor], size: tuple[int, int], classes: Tensor, normalise
) -> Tensor:
    """`multiscale_cam` of an image of `size` (H, W) that was scaled before."""
    device = classifier.fc8.weight.device
    total = 0
    for image in images:
        x = normalise(image.to(device))
        cam = classifier.cam(torch.cat([x, x.flip(-1)])).float()[:, classes]
        straight, mirrored = cam.chunk(2)
        total = total + resize(straight + mirrored.flip(-1), size)
    total = total[0]
    return total / (total.amax(dim=(1, 2), keepdim=True) + 1e-5)

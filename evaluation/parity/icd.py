"""ICD's golden arrays (icd_*.npz), recomputed with the functions that the training calls."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from evaluation.parity.run import VALUES, Row, Run, numpy
from models.icd.bottom_up import bottom_up_loss, class_scores, signed, update_sign_statistics
from models.icd.refinement import refine, resized_one_hot
from models.icd.top_down import top_down_loss, warm_up

INPUTS = frozenset("feat label weight cam superpixel td_logits".split())


def rows(run: Run) -> Iterator[Row]:
    labels = run.tensor("label")
    weight = run.tensor("weight").requires_grad_()
    scores = class_scores(run.tensor("feat"), weight)
    yield Row("bottom_up", numpy(scores), VALUES)
    yield Row("weight_grad", gradient(bottom_up_loss(scores, labels), weight, len(labels)), VALUES)
    scores = scores.detach()
    statistics = torch.zeros(*labels.shape[1:], 2, device=run.device)
    for update in range(2):
        update_sign_statistics(statistics, scores, run.tensor("cam"), labels)
        yield Row(f"running_{update}", numpy(statistics).copy(), VALUES)
        yield Row(f"signed_{update}", numpy(signed(scores, statistics)), VALUES)
    one_hot = resized_one_hot(
        run.tensor("superpixel"), tuple(scores.shape[-2:]), int(run.golden["superpixel"].max()) + 1
    )
    refined = refine(signed(scores, statistics), labels, one_hot)
    yield Row("refined", numpy(refined), VALUES)
    t = run.tensor("td_logits").requires_grad_()
    yield Row("td_prob", numpy(t.sigmoid()), VALUES)
    yield Row("td_grad", gradient(top_down_loss(t, refined, labels), t, len(labels)), VALUES)
    factors = np.array([warm_up(step, 8) for step in range(10)])
    yield Row("warmup_8", factors, VALUES)


def gradient(loss: Tensor, at: Tensor, images: int) -> np.ndarray:
    """The file has the gradients of the sum over the images, the losses here are means."""
    return numpy(torch.autograd.grad(images * loss, at)[0])

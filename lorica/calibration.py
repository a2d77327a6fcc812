"""What a classifier's logits say beyond the best class: how probable it is, and whether the image is of a class learned
at all.

Both are fitted on images of the known classes that were set aside, of which nothing was learned. With z the logits of
an image, y its class, K the number of classes and n the number of images:

    p = softmax(z / T),    1/T = argmin_b  sum_i CE(b z_i, y_i) + 1/2n sum_i (CE(b z_i, top_i) + CE(b z_i, second_i))
                            (1)

top and second are the classes of an image's two largest logits. The second sum is what one image more would weigh, half
of it right and half mistaken for the runner-up (of two classes, Jeffreys' rule for a share): images that are told apart
without an error, or a handful of them, do not make T vanish. All of (1) is convex in b, and its one minimum is found by
bisection of the derivative. Temperature scaling without that sum: Guo et al. (ICML 2017).

A score is large for known classes:

    probability  max_c p_c        logit  max_c z_c        energy  T log sum_c exp(z_c / T)                           (2)

the first of Hendrycks and Gimpel (ICLR 2017), the second of Hendrycks et al. (ICML 2022), the third of Liu et al.
(NeurIPS 2020). An image is called unknown where its score is below the k-th smallest of the images set aside, k =
floor(share (n + 1)). Of new images of the same kind a share k / (n + 1) is below, on average, whatever the distribution
of the scores (that of split conformal prediction).

Which score is the default, and what few images do: docs/unknowns.md. Equation numbers are this file's.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import floor, log
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float64, Int
from pydantic import BaseModel, Field
from torch import Tensor

from lorica.errors import LoricaError
from lorica.linalg import double
from lorica.reading import WRITTEN

Score = Literal["probability", "logit", "energy"]
"""What (2) measures an image by, to call it unknown."""

SCORE: Score = "logit"
"""Unless `fit` is told another."""

SHARE = 0.05
"""Of known images, called unknown, unless `fit` is told another."""

FEWEST = 9
"""Images set aside without which there is no threshold."""

FLATTEST = 1e-3
"""Smallest 1/T, in units of one over the mean distance from an image's largest logit to the mean of its logits:
probabilities are all but alike."""

PRECISION = 1e-6
"""To which T is found, relative to it."""

Positive = Annotated[int, Field(ge=1, lt=2**63)]


class Calibration(BaseModel):
    """How to read the logits of one state of a model; of plain values, for a file.

    Attributes:
        temperature: T.
        score: what is compared with the threshold.
        threshold: scores below it are of unknown classes; None where too few images were set aside.
        share: of new images of known classes, how many are below it on average; None with it.
        images: that it was fitted on.
        classes: that these images were of.
        among: classes that the logits were of. Where they are others, it has to be fitted again.
    """

    model_config = WRITTEN

    temperature: Annotated[float, Field(gt=0)]
    score: Score
    threshold: float | None
    share: Annotated[float, Field(gt=0, lt=1)] | None
    images: Positive
    classes: Positive
    among: Positive


def fit(
    logits: Float[Tensor, "n classes"], labels: Int[Tensor, " n"], *, score: Score = SCORE, share: float = SHARE
) -> Calibration:
    """Temperature and threshold for a model as it is now.

    Args:
        logits: of images that were set aside, over all classes that the model knows.
        labels: the images' classes. Not every class needs images.
        share: of known images, to be called unknown. Of few images it is the smallest that they can tell, one in n + 1;
            of fewer than `FEWEST` there is no threshold.

    Raises:
        LoricaError: no images, logits that are not finite, labels that are no classes, or a share that is none.
    """
    if problems := list(_faults(logits, labels, share)):
        raise LoricaError(problems)
    logits, images = double(logits), len(labels)
    temperature = _temperature(logits, labels.to(logits.device))
    threshold = reached = None
    if images >= FEWEST:
        place = max(1, floor(share * (images + 1) + 1e-9))  # 0.05 * 20 is 1
        threshold = _scores(logits, score, temperature).sort().values[place - 1].item()
        reached = place / (images + 1)
    return Calibration(
        temperature=temperature,
        score=score,
        threshold=threshold,
        share=reached,
        images=images,
        classes=len(labels.unique()),
        among=logits.shape[1],
    )


def _faults(logits: Tensor, labels: Tensor, share: float) -> Iterator[str]:
    images, classes = logits.shape
    if not images:
        yield "calibration: no samples were set aside, and it needs some; set some of each class aside before learning"
    if not classes:
        yield "calibration: expected logits of at least one class, got none; learn a task first"
    if not bool(logits.isfinite().all()):
        yield "calibration: logits are not finite; what was learned is damaged: go back to an earlier task"
    if images and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        yield (
            f"calibration: expected labels from 0 to {classes - 1}, the classes of the logits; got some from "
            f"{int(labels.min())} to {int(labels.max())}: set samples of known classes aside"
        )
    if not 0 < share < 1:
        yield f"calibration: expected a share between 0 and 1 of known samples to be called unknown, got {share}"


def _temperature(logits: Float64[Tensor, "n classes"], labels: Int[Tensor, " n"]) -> float:
    """T of (1); 1 where all logits of each image are alike, so that it makes no difference."""
    images, classes = logits.shape
    spread = (logits.amax(dim=1) - logits.mean(dim=1)).mean().item()
    if not spread > 0:
        return 1.0
    z = (logits - logits.amax(dim=1, keepdim=True)) / spread
    best = z.topk(2, dim=1).values
    wanted = (images * z.gather(1, labels[:, None]).squeeze(1) + best.mean(dim=1)) / (images + 1)
    # the mean under p is at least the maximum less log(K) / b, and the wanted one less than the maximum by a part of
    # the margin
    margin = max((best[:, 0] - best[:, 1]).mean().item(), PRECISION)
    low, high = FLATTEST, 2 * log(classes) * (images + 1) / margin
    while high > low * (1 + PRECISION):
        middle = (low * high) ** 0.5
        rising = ((F.softmax(middle * z, dim=1) * z).sum(dim=1) - wanted).mean() > 0
        low, high = (low, middle) if rising else (middle, high)
    return spread / low


def probabilities(logits: Float[Tensor, "n classes"], calibration: Calibration) -> Float[Tensor, "n classes"]:
    """p of (1), in float32: how probable each known class is, given that it is one of them.

    Raises:
        LoricaError: logits of another number of classes than the calibration was fitted with.
    """
    return F.softmax(_fitting(logits, calibration) / calibration.temperature, dim=1).float()


def scores(logits: Float[Tensor, "n classes"], calibration: Calibration) -> Float64[Tensor, " n"]:
    """The calibration's score of each image, (2): the larger, the more like the known classes. LoricaError as
    `probabilities`."""
    return _scores(_fitting(logits, calibration), calibration.score, calibration.temperature)


def is_unknown(logits: Float[Tensor, "n classes"], calibration: Calibration) -> Bool[Tensor, " n"]:
    """Whether each image is called one of no class learned; none is, where there is no threshold. LoricaError as
    `probabilities`."""
    found = scores(logits, calibration)
    return torch.zeros_like(found, dtype=torch.bool) if calibration.threshold is None else found < calibration.threshold


def _fitting(logits: Tensor, calibration: Calibration) -> Float64[Tensor, "n classes"]:
    if logits.shape[1] != calibration.among:
        raise LoricaError(
            f"calibration: it was fitted with {calibration.among} classes, and the logits are of {logits.shape[1]}; "
            "fit it again after every change of the model"
        )
    return double(logits)


def _scores(logits: Float64[Tensor, "n classes"], score: Score, temperature: float) -> Float64[Tensor, " n"]:
    if score == "logit":
        return logits.amax(dim=1)
    if score == "energy":
        return temperature * (logits / temperature).logsumexp(dim=1)
    return F.softmax(logits / temperature, dim=1).amax(dim=1)


def expected_calibration_error(
    probabilities: Float[Tensor, " n"], right: Bool[Tensor, " n"], *, bins: int = 15
) -> float:
    """Mean distance between how probable predictions were said to be and how many of them were right, over bins of
    equal width (m/M, (m+1)/M], each weighed by its images (Guo et al. 2017).

    Args:
        probabilities: of the predicted classes.

    Raises:
        LoricaError: no images, or not a number of bins.
    """
    if not len(right) or bins < 1:
        raise LoricaError(
            f"calibration error: expected at least one image and one bin, got {len(right)} images and {bins} bins"
        )
    said, right = double(probabilities), right.to(double(probabilities))
    inner = torch.linspace(0, 1, bins + 1, dtype=said.dtype, device=said.device)[1:-1]
    excess = torch.zeros(bins, dtype=said.dtype, device=said.device)
    excess.index_add_(0, torch.bucketize(said, inner), said - right)
    return excess.abs().sum().item() / len(right)


def auroc(known: Float[Tensor, " n"], unknown: Float[Tensor, " m"]) -> float:
    """The probability that the score of a known image is above that of an unknown one, ties counted half: the area
    under the receiver operating characteristic.

    Raises:
        LoricaError: no scores of one of the two.
    """
    if not len(known) or not len(unknown):
        raise LoricaError(f"AUROC: expected scores of both, got {len(known)} known and {len(unknown)} unknown")
    from sklearn.metrics import roc_auc_score  # slow to import

    is_known = [1] * len(known) + [0] * len(unknown)
    return float(roc_auc_score(is_known, torch.cat([known, unknown.to(known)]).cpu().numpy()))

"""Temperature, threshold, scores and measures against closed forms and direct definitions."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from lorica.calibration import (
    FEWEST,
    Calibration,
    auroc,
    expected_calibration_error,
    fit,
    is_unknown,
    probabilities,
    scores,
)
from lorica.errors import LoricaError

SCALES = st.sampled_from([1e-6, 1e-2, 1.0, 30.0, 1e6])


@st.composite
def answers(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Logits of some images, of any scale and maybe all alike, and labels that may all be right, or wrong."""
    images, classes = draw(st.integers(1, 12)), draw(st.integers(1, 6))
    values = st.lists(st.floats(-1, 1, width=32), min_size=classes, max_size=classes)
    logits = torch.tensor(draw(st.lists(values, min_size=images, max_size=images))) * draw(SCALES)
    best = draw(st.booleans())
    labels = logits.argmax(dim=1) if best else torch.tensor([draw(st.integers(0, classes - 1)) for _ in range(images)])
    return logits, labels


def a_calibration(**changed: Any) -> Calibration:
    values = {
        "temperature": 2.0,
        "score": "logit",
        "threshold": 1.0,
        "share": 0.05,
        "images": 20,
        "classes": 2,
        "among": 3,
    }
    return Calibration(**(values | changed))


# --- temperature ----------------------------------------------------------------------------------------------------


def objective(logits: Tensor, labels: Tensor, inverse: float) -> float:
    """What the temperature minimises, image by image."""
    total, images = 0.0, len(labels)
    for row, label in zip(logits.double().numpy(), labels.tolist(), strict=True):
        z = inverse * (row - row.max())
        log_p = z - np.log(np.exp(z).sum())
        first, second = np.argsort(-row, kind="stable")[:2]
        total -= log_p[label] + (log_p[first] + log_p[second]) / (2 * images)
    return total


@pytest.mark.parametrize(("images", "right"), [(1, 1), (5, 5), (5, 4), (40, 31), (300, 300)])
@pytest.mark.parametrize("margin", [0.01, 3.0, 500.0])
def test_of_two_classes_jeffreys_rule(images: int, right: int, margin: float) -> None:
    logits = torch.tensor([[margin, 0.0]]).repeat(images, 1)
    labels = torch.tensor([0] * right + [1] * (images - right))
    found = fit(logits, labels)
    assert probabilities(logits, found)[:, 0].tolist() == pytest.approx(
        [(right + 0.5) / (images + 1)] * images, abs=1e-5
    )


def test_the_temperature_that_labels_were_drawn_with() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 20 * torch.randn(20_000, 7, generator=generator)
    labels = (logits / 8).softmax(dim=1).multinomial(1, generator=generator).squeeze(1)
    assert fit(logits, labels).temperature == pytest.approx(8, rel=0.03)


def test_answers_worse_than_chance_say_nothing() -> None:
    logits = torch.eye(4)[[0, 1, 2, 3] * 5]
    found = probabilities(logits, fit(logits, (torch.arange(20) + 1) % 4))
    torch.testing.assert_close(found, torch.full((20, 4), 0.25), atol=1e-3, rtol=0)


@given(answers())
def test_no_other_temperature_is_better(example: tuple[Tensor, Tensor]) -> None:
    logits, labels = example
    found = fit(logits, labels).temperature
    spread = (logits.amax(dim=1) - logits.double().mean(dim=1)).mean().item()
    if spread == 0:
        assert found == 1
        return
    least = objective(logits, labels, 1 / found)
    flattest = found >= spread * 999  # the bound: higher ones are not allowed
    others = (0.5, 0.97) if flattest else (0.5, 0.97, 1.03, 2.0)
    assert all(objective(logits, labels, 1 / (found * other)) >= least - 1e-6 for other in others)


@given(answers(), st.sampled_from([0.25, 8.0]))
def test_only_the_proportions_of_differences_matter(example: tuple[Tensor, Tensor], factor: float) -> None:
    logits, labels = example
    one, other = fit(logits, labels), fit(factor * logits.double() + torch.arange(len(labels))[:, None], labels)
    torch.testing.assert_close(
        probabilities(logits, one),
        probabilities(factor * logits.double() + torch.arange(len(labels))[:, None], other),
        atol=1e-4,
        rtol=0,
    )


@given(answers(), st.sampled_from(["probability", "logit", "energy"]))
def test_whatever_the_images_probabilities_are_such_and_prefer_the_same_class(
    example: tuple[Tensor, Tensor], score: Any
) -> None:
    logits, labels = example
    found = fit(logits, labels, score=score)
    said = probabilities(logits, found)
    assert found.temperature > 0
    assert bool(((said >= 0) & (said <= 1)).all())
    torch.testing.assert_close(said.sum(dim=1), torch.ones(len(said)))
    best = said.gather(1, logits.argmax(dim=1, keepdim=True)).squeeze(1)
    torch.testing.assert_close(best, said.amax(dim=1), atol=0, rtol=0)
    assert bool(scores(logits, found).isfinite().all())


def test_half_precision_is_read_as_it_is() -> None:
    logits, labels = torch.tensor([[300.0, 0.0], [0.0, 200.0]]), torch.tensor([0, 1])
    assert fit(logits.bfloat16(), labels) == fit(logits, labels)


# --- threshold ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "share", "place"),
    [(9, 0.05, 1), (19, 0.05, 1), (38, 0.05, 1), (39, 0.05, 2), (200, 0.05, 10), (99, 0.29, 29)],
)
def test_the_threshold_is_one_of_the_smallest_scores(images: int, share: float, place: int) -> None:
    best = torch.randperm(images, generator=torch.Generator().manual_seed(0)).float()
    logits = torch.stack([best, best - 1, best - 5], dim=1)
    found = fit(logits, torch.zeros(images, dtype=torch.long), share=share)
    assert found.threshold == place - 1
    assert found.share == pytest.approx(place / (images + 1))
    assert int(is_unknown(logits, found).sum()) == place - 1


@settings(max_examples=30)
@given(st.lists(st.integers(-1000, 1000), min_size=FEWEST + 1, max_size=30, unique=True), st.floats(0.01, 0.9))
def test_as_many_known_images_are_called_unknown_as_it_says(best: list[int], share: float) -> None:
    """Each image in turn is new, and the others were set aside: averaged over that, the share is exact."""
    logits = torch.stack([torch.tensor(best).float(), torch.full((len(best),), -2000.0)], dim=1)
    labels, called = torch.zeros(len(best), dtype=torch.long), 0
    for new in range(len(best)):
        others = torch.arange(len(best)) != new
        found = fit(logits[others], labels[others], share=share)
        called += int(is_unknown(logits[new : new + 1], found))
    assert called / len(best) == pytest.approx(found.share)
    assert found.share is not None
    assert found.share <= max(share, 1 / len(best)) + 1e-9


def test_of_a_handful_of_images_there_is_no_threshold() -> None:
    logits, labels = torch.eye(3)[[0, 1, 2] * 2 + [0, 1]], torch.tensor([0, 1, 2] * 2 + [0, 1])
    found = fit(logits, labels)
    assert (found.threshold, found.share, found.images, found.classes) == (None, None, FEWEST - 1, 3)
    assert not is_unknown(-100 * torch.ones(4, 3), found).any()


def test_it_says_what_it_was_fitted_on() -> None:
    found = fit(torch.eye(5)[[0, 0, 3]], torch.tensor([0, 0, 3]))
    assert (found.images, found.classes, found.among) == (3, 2, 5)


# --- scores ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("score", "expected"),
    [
        ("logit", lambda z: z.max()),
        ("probability", lambda z: np.exp(z.max() / 2) / np.exp(z / 2).sum()),
        ("energy", lambda z: 2 * np.log(np.exp(z / 2).sum())),
    ],
)
def test_scores_are_what_they_are_called(score: str, expected: Callable[[np.ndarray], float]) -> None:
    logits = torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0], [-4.0, 5.0, 1.5]])
    found = scores(logits, a_calibration(score=score))
    assert found.tolist() == pytest.approx([expected(row) for row in logits.double().numpy()])


def test_below_the_threshold_an_image_is_unknown() -> None:
    logits = torch.tensor([[0.0, 1.5, 0.0], [0.0, 0.5, 0.0], [1.0, 0.0, 0.0]])
    assert is_unknown(logits, a_calibration()).tolist() == [False, True, False]


def test_of_a_single_class_the_logit_still_tells() -> None:
    logits = torch.arange(20.0)[:, None]
    found = fit(logits, torch.zeros(20, dtype=torch.long))
    assert probabilities(logits, found).tolist() == [[1.0]] * 20
    assert is_unknown(torch.tensor([[-1.0], [5.0]]), found).tolist() == [True, False]


# --- the record -----------------------------------------------------------------------------------------------------


@given(answers())
def test_it_goes_through_a_file(example: tuple[Tensor, Tensor]) -> None:
    found = fit(*example)
    assert Calibration.model_validate(json.loads(json.dumps(found.model_dump(), allow_nan=False))) == found


@pytest.mark.parametrize(
    "damage",
    [
        {"temperature": 0.0},
        {"temperature": float("nan")},
        {"score": "luck"},
        {"threshold": float("inf")},
        {"images": 0},
        {"more": 1},
    ],
)
def test_a_damaged_record_is_refused(damage: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        a_calibration(**damage)


# --- mistakes -------------------------------------------------------------------------------------------------------


def test_everything_wrong_is_said_at_once() -> None:
    logits = torch.tensor([[0.0, float("inf")], [0.0, 1.0]])
    with pytest.raises(LoricaError) as caught:
        fit(logits, torch.tensor([0, 2]), share=1.5)
    assert [problem.split(";")[0] for problem in caught.value.problems] == [
        "calibration: logits are not finite",
        "calibration: expected labels from 0 to 1, the classes of the logits",
        "calibration: expected a share between 0 and 1 of known samples to be called unknown, got 1.5",
    ]


@pytest.mark.parametrize(("shape", "said"), [((0, 3), "no samples were set aside"), ((2, 0), "at least one class")])
def test_nothing_to_fit_on(shape: tuple[int, int], said: str) -> None:
    with pytest.raises(LoricaError, match=said):
        fit(torch.zeros(shape), torch.zeros(shape[0], dtype=torch.long))


@pytest.mark.parametrize("function", [probabilities, scores, is_unknown])
def test_the_calibration_of_another_state_is_refused(function: Callable[[Tensor, Calibration], Tensor]) -> None:
    with pytest.raises(LoricaError, match="fitted with 3 classes, and the logits are of 4; fit it again"):
        function(torch.zeros(2, 4), a_calibration())


# --- measures -------------------------------------------------------------------------------------------------------


def test_calibration_error_by_hand() -> None:
    said = torch.tensor([0.1, 0.5, 0.51, 0.9, 1.0])  # two bins, (0, 0.5] and (0.5, 1]
    right = torch.tensor([False, True, True, False, True])
    # |0.6 - 1| / 5 + |2.41 - 2| / 5
    assert expected_calibration_error(said, right, bins=2) == pytest.approx((0.4 + 0.41) / 5, abs=1e-6)


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=40), st.integers(1, 20))
def test_calibration_error_bin_by_bin(example: list[tuple[float, bool]], bins: int) -> None:
    said, right = (np.array(column) for column in zip(*example, strict=True))
    edges, expected = np.linspace(0, 1, bins + 1), 0.0
    edges[0] = -1
    for low, high in pairwise(edges):
        own = (said > low) & (said <= high)
        if own.any():
            expected += own.mean() * abs(said[own].mean() - right[own].mean())
    found = expected_calibration_error(torch.from_numpy(said), torch.from_numpy(right), bins=bins)
    assert found == pytest.approx(expected, abs=1e-9)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=30), st.lists(st.integers(0, 9), min_size=1, max_size=30))
def test_auroc_counts_pairs(known: list[int], unknown: list[int]) -> None:
    pairs = [1.0 if one > other else 0.5 * (one == other) for one in known for other in unknown]
    found = auroc(torch.tensor(known).double(), torch.tensor(unknown).float())
    assert found == pytest.approx(sum(pairs) / len(pairs))


def test_measures_of_nothing_are_refused() -> None:
    with pytest.raises(LoricaError, match="got 0 images and 15 bins"):
        expected_calibration_error(torch.zeros(0), torch.zeros(0, dtype=torch.bool))
    with pytest.raises(LoricaError, match="got 3 images and 0 bins"):
        expected_calibration_error(torch.zeros(3), torch.zeros(3, dtype=torch.bool), bins=0)
    with pytest.raises(LoricaError, match="got 0 known and 2 unknown"):
        auroc(torch.zeros(0), torch.zeros(2))

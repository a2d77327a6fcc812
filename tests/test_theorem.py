"""The experiment on Theorem 1, against closed forms and against the exponents it derives."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from lorica.errors import LoricaError
from lorica.theorem import Experiment, Setting, descend, experiment, sd_lora_directions


@pytest.fixture(scope="module")
def result() -> Experiment:
    """Gaps chosen for round numbers: e = 2 (1 - 0.5) / 1.5 = 2/3, 2 (0.5 - 0.25) / 0.75 = 2/3, and 2 for the last."""
    return experiment(Setting(spectrum=(1.0, 0.5, 0.25), epsilons=(1e-5, 1.0, 1e-3, 1e-4), rank=5, learning_rate=0.02))


def test_a_scalar_follows_the_logistic() -> None:
    """u = d = sqrt(x): du/dt = (2 - u^2) u, so x(t) = 2 / (1 + (2/x(0) - 1) exp(-4 t))."""
    start = np.full((1, 1), 0.1)
    path = descend(np.full((1, 1), 2.0), start, start, learning_rate=1e-4, steps=30_000, every=5000)
    times = np.arange(7) * 0.5
    np.testing.assert_allclose(path[:, 0, 0], 2 / (1 + 199 * np.exp(-4 * times)), rtol=2e-3)


def test_one_step_by_hand() -> None:
    """U = [1, 0]', D = [1, 2], M = 0, η = 0.1: U D = [[1, 2], [0, 0]], U <- U - 0.1 U D D' = [0.5, 0]', D <- 0.9 D."""
    up, down = np.array([[1.0], [0.0]]), np.array([[1.0, 2.0]])
    before, after = descend(np.zeros((2, 2)), up, down, learning_rate=0.1, steps=1)
    np.testing.assert_allclose(before, [[1, 2], [0, 0]])
    np.testing.assert_allclose(after, [[0.45, 0.9], [0, 0]])


def test_components_arrive_in_order_when_they_should(result: Experiment) -> None:
    sigma = np.array([1.0, 0.5, 0.25])
    for run in result.descents[1:]:
        assert (np.diff(run.arrivals) > 1 / sigma[:-1]).all()
        np.testing.assert_allclose(run.arrivals, run.derived_arrivals, rtol=0.05)
        assert (np.diff(run.best_times) > 0).all()
        # at the best time of stage i the first i components are there, with the target's vectors, and the next is not
        for i, step in enumerate(run.errors[:, :2].argmin(axis=0), start=1):
            np.testing.assert_allclose(run.singular_values[step, :i], sigma[:i], atol=0.05)
            assert (run.singular_values[step, i:] < 0.05).all()
            assert (run.alignment[step, :i] > 0.99).all()
    # ln(10) / σ later for a tenth of the scale
    late, later = result.descents[-2:]
    np.testing.assert_allclose(later.arrivals - late.arrivals, math.log(10) / sigma, rtol=0.03)


def test_best_times_grow_as_derived(result: Experiment) -> None:
    """T_i = 2 ln(1/ε) / (σ_i + σ_{i+1}), so 2 ln(10) / 1.5 and 2 ln(10) / 0.75 for a tenth of the scale."""
    late, later = result.descents[-2:]
    gained = (later.best_times - late.best_times)[:2]
    np.testing.assert_allclose(gained, [2 * math.log(10) / 1.5, 2 * math.log(10) / 0.75], rtol=0.05)


def test_errors_fall_with_the_derived_exponents(result: Experiment) -> None:
    assert result.setting.exponents == pytest.approx((2 / 3, 2 / 3, 2))
    np.testing.assert_allclose(result.fitted, [2 / 3, 2 / 3, 2], rtol=0.03)
    # the slope between neighbours, without the fit
    least = np.array([run.best_errors for run in result.descents[1:]])
    np.testing.assert_allclose(np.log10(least[:-1] / least[1:]), [[2 / 3, 2 / 3, 2]] * 2, rtol=0.05)


def test_a_large_start_passes_through_no_stage(result: Experiment) -> None:
    """What skips stage i comes no nearer to M_i than the target itself, ||M - M_i||_F, or hardly."""
    large, small = result.descents[0], result.descents[-1]
    assert (large.epsilon, small.epsilon) == (1.0, 1e-5)
    skipped = np.array([math.hypot(0.5, 0.25), 0.25])
    assert (large.best_errors[:2] > 0.5 * skipped).all()
    assert (small.best_errors[:2] < 0.01 * skipped).all()
    assert not (np.diff(large.arrivals) > 1).all()


@pytest.mark.parametrize("seed", range(3))
def test_directions_learned_one_by_one_are_the_components(seed: int) -> None:
    target = np.zeros((6, 5))
    target[[0, 1, 2], [2, 0, 1]] = [3.0, -2.0, 1.0]
    magnitudes, ups, downs = sd_lora_directions(target, 3, seed=seed)
    np.testing.assert_allclose(np.abs(ups), np.eye(3, 6), atol=1e-3)
    np.testing.assert_allclose(np.abs(downs), np.eye(5)[[2, 0, 1]], atol=1e-3)
    np.testing.assert_allclose(np.abs(magnitudes), [[3, 0, 0], [3, 2, 0], [3, 2, 1]], atol=1e-3)
    learned = np.einsum("k,km,kn->mn", magnitudes[-1], ups, downs)
    np.testing.assert_allclose(learned, target, atol=1e-3)


def test_what_sd_lora_found_is_in_the_result(result: Experiment) -> None:
    np.testing.assert_allclose(result.found, np.eye(3), atol=1e-3)
    np.testing.assert_allclose(np.abs(result.magnitudes[-1]), [1, 0.5, 0.25], atol=1e-3)


def test_a_seed_fixes_everything() -> None:
    def least(seed: int) -> str:
        setting = Setting(
            spectrum=(1.0,), epsilons=(0.1, 0.05), rank=2, rows=4, columns=3, learning_rate=0.1, seed=seed
        )
        return json.dumps(experiment(setting).summary(), allow_nan=False)

    assert least(3) == least(3)
    assert least(3) != least(4)
    assert '"fitted": [null]' in least(3)  # nothing small enough to fit


@pytest.mark.parametrize(
    ("wrong", "names"),
    [
        ({"spectrum": (1.0, 1.0)}, "spectrum"),
        ({"spectrum": (1.0, 0.0)}, "spectrum"),
        ({"spectrum": ()}, "spectrum"),
        ({"rank": 4}, "rank"),
        ({"rank": 17}, "rank"),
        ({"learning_rate": 0.2}, "learning_rate"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"epsilons": ()}, "epsilons"),
        ({"epsilons": (0.1, 0.0)}, "epsilons"),
        ({"seed": -1}, "seed"),
    ],
)
def test_settings_are_checked(wrong: dict, names: str) -> None:
    with pytest.raises(LoricaError, match=f"^{names}: expected"):
        Setting(**wrong)


def test_divergence_is_a_user_error() -> None:
    with pytest.raises(LoricaError, match="diverges"):
        descend(np.zeros((2, 2)), np.full((2, 2), 9.0), np.full((2, 2), 9.0), learning_rate=0.1, steps=50)

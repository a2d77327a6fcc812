"""Why the first directions matter: a runnable companion to Theorem 1 of the SD-LoRA paper.

Source: Wu et al., "SD-LoRA", ICLR 2025 (arXiv 2501.13198), Theorem 1. What we know of it: both factors start as small
Gaussians of scale ε, gradient descent factorises ΔW* = W* - W0, and what is learned early approximates the leading
principal components of ΔW* up to terms that vanish with ε. Its exact statement and constants were not at hand when
this was written, nor those of the theory beneath it (Jiang, Chen and Ding, arXiv 2203.02839; Jin et al., arXiv
2301.11500; Li, Luo and Lyu, ICLR 2021). So nothing here is a check of their constants: the ε-dependent terms below,
(2) to (5), are **ours**, a leading-order derivation rather than a proof.

**Setting.** ΔW* = Σ_i σ_i u_i v_i' =: M with σ_1 > … > σ_k > 0 = σ_{k+1}, and M_i its best approximation of rank i.
U [m, r] and D [r, n] have independent entries ε N(0, 1), r > k. With time t = η × steps and a small η, gradient
descent on

    f(U, D) = 1/2 ||U D - M||_F^2    (1)

follows dU/dt = (M - U D) D', dD/dt = U' (M - U D). Write a_i = U' u_i and b_i = D v_i, both in R^r, and
p_i = (a_i + b_i) / √2.

*Growth.* While U D is small, da_i/dt = σ_i b_i and db_i/dt = σ_i a_i, so p_i grows as exp(σ_i t), its mirror
(a_i - b_i) / √2 shrinks, and x_i = u_i' U D v_i ≈ |p_i|^2 / 2. *Saturation.* A component alone obeys
dx/dt = 2 x (σ - x), the logistic

    x_i(t) = σ_i / (1 + (σ_i / x_i(0) - 1) exp(-2 σ_i t)),   so it reaches σ_i / 2 at   t_i ≈ ln(1/ε) / σ_i.    (2)

*Company.* Once component i has arrived, the part of a later p_j along p_i changes at the rate σ_j - σ_i < 0 and the
part across it still at σ_j. Hence x_i(0) in (2) is |q_i|^2 / 2, where q_i is p_i(0) without its projection on p_1(0)
… p_{i-1}(0).

*Error of stage i*, that is ||U D - M_i||_F, to leading order in ε; write ε = exp(-L):

    what component i still lacks        exp(-2 σ_i (t - t_i)) = exp(2 L - 2 σ_i t)
    cross terms u_i' U D v_j, j = i+1   |p_i| |p_j along p_i| = exp(-(σ_i - σ_j) t)    (3)
    component i+1, already growing      exp(2 σ_{i+1} t - 2 L)

The first two fall with t and the third rises. All three meet at

    T_i = 2 ln(1/ε) / (σ_i + σ_{i+1})    (4)

and leave, with a constant that depends on M, r and the draw but not on ε,

    min_t ||U D - M_i||_F ~ C_i ε^{e_i},      e_i = 2 (σ_i - σ_{i+1}) / (σ_i + σ_{i+1}).    (5)

Terms of other pairs of components have larger exponents. For i = k, e_k = 2: the unused r - k dimensions stay at ε^2.
There the error has no minimum, it goes on falling at rates of about m ε^2, and a descent stops 6 / σ_k after T_k. A
gap of zero gives e_i = 0: equal components cannot be told apart. At a large ε nothing of this holds: all directions
carry weight from the start.

**SD-LoRA's own parametrisation**, Σ_k α_k U_k D_k / ||U_k D_k||_F with rank-1 directions learned one after another
(`sd_lora_directions`): a normalised direction does not depend on the scale of its factors. A small scale s acts
through the step size alone: the direction turns 1/s² times as fast as the magnitudes move, so it has found its place
before they answer. The order comes from the freezing: direction k meets a residual whose leading component is the
k-th.

Pure numpy in double precision; the gradients are written out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from jaxtyping import Float

from lorica.errors import LoricaError

SPECTRUM = (1.0, 0.5, 0.35, 0.1)  # exponents 0.67, 0.35, 1.11 and 2: different gaps, different rates
EPSILONS = (1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
_SMALL = 1e-2  # exponents are fitted to these ε and smaller ones: (5) is asymptotic


@dataclass(frozen=True)
class Setting:
    """The target ΔW* [rows, columns] by its singular values, and how it is factorised.

    Raises:
        LoricaError: a spectrum that does not fall strictly to a positive value, or is too long for `rank` and the
            matrix; a learning rate, an epsilon or a seed out of range.
    """

    spectrum: tuple[float, ...] = SPECTRUM
    epsilons: tuple[float, ...] = EPSILONS
    rows: int = 20
    columns: int = 16
    rank: int = 8
    learning_rate: float = 0.01
    seed: int = 0

    def __post_init__(self) -> None:
        falling = all(a > b for a, b in pairwise((*self.spectrum, 0.0)))
        if not self.spectrum or not falling or not math.isfinite(self.spectrum[0]):
            raise LoricaError(f"spectrum: expected positive, strictly falling singular values, not {self.spectrum}")
        if not len(self.spectrum) < self.rank <= min(self.rows, self.columns):
            raise LoricaError(
                f"rank: expected more than the {len(self.spectrum)} components of the spectrum and at most "
                f"min(rows, columns) = {min(self.rows, self.columns)}, not {self.rank}"
            )
        if not 0 < self.learning_rate * self.spectrum[0] <= 0.1:
            raise LoricaError(
                f"learning_rate: expected at most 0.1 / (largest singular value) = {0.1 / self.spectrum[0]:g}, "
                f"so that descent stays near its continuous limit, not {self.learning_rate}"
            )
        if not self.epsilons or not all(0 < epsilon <= 1 for epsilon in self.epsilons):
            raise LoricaError(f"epsilons: expected at least one, each in (0, 1], not {self.epsilons}")
        if self.seed < 0:
            raise LoricaError(f"seed: expected an integer of at least 0, not {self.seed}")

    @property
    def exponents(self) -> tuple[float, ...]:
        """e_i of (5), one per component."""
        return tuple(2 * (a - b) / (a + b) for a, b in pairwise((*self.spectrum, 0.0)))


@dataclass(frozen=True)
class Descent:
    """One descent from scale `epsilon`, at its `times` [s] = learning rate x step; k components.

    `singular_values` [s, k]: the k largest of U D.
    `strengths` [s, k]: u_i' U D v_i.
    `alignment` [s, k]: |u_i' x_i y_i' v_i|, 1 if the i-th singular vectors x_i, y_i of U D are the target's.
    `errors` [s, k]: ||U D - M_i||_F; `best_times`, `best_errors` [k]: where they are least.
    `predicted` [s, k]: the logistic (2).
    `arrivals` [k]: from when on u_i' U D v_i stays within half of σ_i, nan if it never does.
    `derived_arrivals` [k]: when (2) reaches σ_i / 2, 0 if it starts beyond.
    """

    epsilon: float
    times: Float[np.ndarray, " s"]
    singular_values: Float[np.ndarray, "s k"]
    strengths: Float[np.ndarray, "s k"]
    alignment: Float[np.ndarray, "s k"]
    errors: Float[np.ndarray, "s k"]
    predicted: Float[np.ndarray, "s k"]
    arrivals: Float[np.ndarray, " k"]
    derived_arrivals: Float[np.ndarray, " k"]
    best_times: Float[np.ndarray, " k"] = field(init=False)
    best_errors: Float[np.ndarray, " k"] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "best_times", self.times[self.errors.argmin(axis=0)])
        object.__setattr__(self, "best_errors", self.errors.min(axis=0))


@dataclass(frozen=True)
class Experiment:
    """Descents from every scale, the largest first, and what SD-LoRA's parametrisation finds in the same target.

    `fitted` [k]: slopes of log(best error) over log ε for ε ≤ 0.01, nan with fewer than two of them.
    `found` [k, k]: |u_i' U_j D_j v_i| / ||U_j D_j||_F, how far direction j (column) is component i (row).
    `magnitudes` [k, k]: row t holds α_1 … α_t after task t, then zeros.
    """

    setting: Setting
    descents: tuple[Descent, ...]
    fitted: Float[np.ndarray, " k"]
    found: Float[np.ndarray, "k k"]
    magnitudes: Float[np.ndarray, "k k"]

    def summary(self) -> dict[str, Any]:
        """Plain values for a file: the setting, and per ε what has one value per component; nan becomes None."""
        return {
            "setting": asdict(self.setting),
            "exponents": {"derived": list(self.setting.exponents), "fitted": _plain(self.fitted)},
            "descents": [
                {
                    "epsilon": run.epsilon,
                    "best_errors": _plain(run.best_errors),
                    "terms": [run.epsilon**exponent for exponent in self.setting.exponents],
                    "best_times": _plain(run.best_times),
                    "arrivals": _plain(run.arrivals),
                    "derived_arrivals": _plain(run.derived_arrivals),
                }
                for run in self.descents
            ],
            "sd_lora": {"found": self.found.tolist(), "magnitudes": self.magnitudes.tolist()},
        }


def experiment(setting: Setting) -> Experiment:
    """Descend from every scale, fit the exponents, and learn the same target by SD-LoRA's parametrisation.

    The draw is the same for every ε, so that only the scale changes. A few seconds on one core.
    """
    left, right, up, down = _draw(setting)
    descents = tuple(_descent(setting, epsilon, left, right, up, down) for epsilon in sorted(setting.epsilons)[::-1])
    small = [run for run in descents if run.epsilon <= _SMALL]
    fitted = np.full(len(setting.spectrum), np.nan)
    if len({run.epsilon for run in small}) > 1:
        logs = np.log([run.best_errors for run in small])
        fitted = np.polyfit(np.log([run.epsilon for run in small]), logs, 1)[0]
    target = left * setting.spectrum @ right.T
    magnitudes, ups, downs = sd_lora_directions(target, len(setting.spectrum), seed=setting.seed)
    return Experiment(setting, descents, fitted, np.abs(left.T @ ups.T * (downs @ right).T), magnitudes)


def descend(
    target: Float[np.ndarray, "m n"],
    up: Float[np.ndarray, "m r"],
    down: Float[np.ndarray, "r n"],
    *,
    learning_rate: float,
    steps: int,
    every: int = 1,
) -> Float[np.ndarray, "s m n"]:
    """Full-batch gradient descent on (1).

    Returns:
        The products U D before the first step and after each `every` steps, s = steps // every + 1.

    Raises:
        LoricaError: the descent diverges.
    """
    products = []
    with np.errstate(over="ignore", invalid="ignore"):
        for step in range(steps + 1):
            product = up @ down
            if step % every == 0:
                products.append(product)
            residual = target - product
            up, down = up + learning_rate * residual @ down.T, down + learning_rate * up.T @ residual
    path = np.stack(products)
    if not np.isfinite(path).all():
        raise LoricaError(f"gradient descent diverges: expected a learning rate smaller than {learning_rate}")
    return path


def sd_lora_directions(
    target: Float[np.ndarray, "m n"], tasks: int, *, seed: int, learning_rate: float = 0.01, steps: int = 4000
) -> tuple[Float[np.ndarray, "t t"], Float[np.ndarray, "t m"], Float[np.ndarray, "t n"]]:
    """Learn Σ_k α_k U_k D_k / ||U_k D_k||_F, U_k [m, 1] and D_k [1, n], by gradient descent on 1/2 ||· - target||_F^2.

    Each of `tasks` times, `steps` steps train the newest direction and all magnitudes, which start at 1; older
    directions are frozen. Factors start Gaussian at a length of about 0.1.

    Returns:
        The magnitudes after each task (row t: t of them, then zeros), and the factors of all directions at length 1.
    """
    (m, n), rng = target.shape, np.random.default_rng([seed, 1])
    history, ups, downs = np.zeros((tasks, tasks)), np.zeros((tasks, m)), np.zeros((tasks, n))
    directions = np.zeros((tasks, m * n))  # those of later tasks are zero, so their magnitudes stay at 1
    alpha = np.ones(tasks)
    for t in range(tasks):
        up, down = 0.1 * rng.standard_normal(m) / math.sqrt(m), 0.1 * rng.standard_normal(n) / math.sqrt(n)
        for _ in range(steps):
            length_up, length_down = math.sqrt(up @ up), math.sqrt(down @ down)
            x, y = up / length_up, down / length_down
            directions[t] = np.outer(x, y).ravel()
            gradient = (alpha @ directions).reshape(m, n) - target
            to_alpha, to_x, to_y = directions @ gradient.ravel(), gradient @ y, x @ gradient
            up = up - learning_rate * alpha[t] / length_up * (to_x - to_alpha[t] * x)
            down = down - learning_rate * alpha[t] / length_down * (to_y - to_alpha[t] * y)
            alpha = alpha - learning_rate * to_alpha
        ups[t], downs[t] = x, y
        history[t, : t + 1] = alpha[: t + 1]
    return history, ups, downs


def _draw(setting: Setting) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Singular vectors [m, k] and [n, k] of the target, and standard Gaussian factors [m, r] and [r, n]."""
    rng, k = np.random.default_rng([setting.seed, 0]), len(setting.spectrum)
    left = np.linalg.qr(rng.standard_normal((setting.rows, k)))[0]
    right = np.linalg.qr(rng.standard_normal((setting.columns, k)))[0]
    up, down = rng.standard_normal((setting.rows, setting.rank)), rng.standard_normal((setting.rank, setting.columns))
    return left, right, up, down


def _descent(
    setting: Setting, epsilon: float, left: np.ndarray, right: np.ndarray, up: np.ndarray, down: np.ndarray
) -> Descent:
    sigma, k = np.array(setting.spectrum), len(setting.spectrum)
    end = (2 * math.log(1 / epsilon) + 6) / sigma[-1]  # T_k of (4), and what (2) needs to come close
    every = max(1, round(0.1 / sigma[0] / setting.learning_rate))
    steps = every * math.ceil(end / setting.learning_rate / every)
    path = descend(
        left * sigma @ right.T,
        epsilon * up,
        epsilon * down,
        learning_rate=setting.learning_rate,
        steps=steps,
        every=every,
    )
    times = np.arange(len(path)) * every * setting.learning_rate
    partial = np.cumsum(np.einsum("k,ik,jk->kij", sigma, left, right), axis=0)
    x, singular_values, y = np.linalg.svd(path, full_matrices=False)
    strengths = np.einsum("ik,sij,jk->sk", left, path, right)
    near = np.abs(strengths - sigma) <= sigma / 2
    first = len(path) - np.logical_and.accumulate(near[::-1]).sum(axis=0)  # of the last unbroken stretch
    start = _starting_strengths((left.T @ up + right.T @ down.T) * (epsilon / math.sqrt(2)))
    return Descent(
        epsilon,
        times,
        singular_values[:, :k],
        strengths,
        np.abs(np.einsum("ik,sik->sk", left, x[:, :, :k]) * np.einsum("jk,skj->sk", right, y[:, :k])),
        np.stack([np.linalg.norm(path - best, axis=(1, 2)) for best in partial], axis=1),
        sigma / (1 + (sigma / start - 1) * np.exp(-2 * sigma * times[:, None])),
        np.append(times, np.nan)[first],
        np.log(np.maximum(sigma / start - 1, 1)) / (2 * sigma),
    )


def _starting_strengths(p: Float[np.ndarray, "k r"]) -> Float[np.ndarray, " k"]:
    """|q_i|^2 / 2: rows of p without their projections on the rows above, whose lengths are the diagonal of R."""
    return np.diag(np.linalg.qr(p.T, mode="r")) ** 2 / 2


def _plain(values: Sequence[float] | np.ndarray) -> list[float | None]:
    return [None if math.isnan(value) else float(value) for value in values]

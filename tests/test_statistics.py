"""Statistics of classes against numpy and scikit-learn."""

import copy
import itertools
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import Ridge

from lorica.errors import TrainingError
from lorica.statistics import (
    DAMPING,
    RIDGES,
    ClassMeans,
    Discriminant,
    RidgeHead,
    affine_drift,
    choose_ridge,
    ridge,
    ridge_errors,
)

CPU = torch.device("cpu")


@pytest.mark.parametrize("kind", [ClassMeans, Discriminant])
def test_scores_are_in_full_precision_under_autocast(kind) -> None:
    classifier = kind(4, device=CPU)
    classifier.grow(3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert classifier(torch.randn(2, 4).bfloat16()).dtype == torch.float32


def test_more_samples_of_a_class_count_like_the_first_ones() -> None:
    features, labels = torch.randn(20, 3), torch.arange(20) % 2
    at_once, in_parts = (ClassMeans(3, device=CPU) for _ in range(2))
    for means in (at_once, in_parts):
        means.grow(2)
    at_once.add(features, labels)
    for part in range(0, 20, 5):
        in_parts.add(features[part : part + 5], labels[part : part + 5])
    torch.testing.assert_close(in_parts.prototypes, at_once.prototypes)
    assert in_parts.counts.tolist() == at_once.counts.tolist() == [10, 10]


def test_class_means_average_raw_features_and_compare_by_cosine() -> None:
    means = ClassMeans(2, device=CPU)
    means.grow(2)
    features = torch.tensor([[3.0, 0.0], [0.0, 1.0], [0.0, 5.0]])
    means.add(features, torch.tensor([0, 0, 1]))
    torch.testing.assert_close(means.prototypes, torch.tensor([[1.5, 0.5], [0.0, 5.0]]))
    # cos((1, 1), (1.5, .5)) = 2 / (sqrt(2) sqrt(2.5));  cos((1, 1), (0, 5)) = 1 / sqrt(2)
    scores = means(torch.tensor([[1.0, 1.0]]))
    assert scores[0].tolist() == pytest.approx([2 / 5**0.5, 0.5**0.5])


def test_rescaling_a_prototype_changes_no_score() -> None:
    means = ClassMeans(3, device=CPU)
    means.grow(2)
    means.add(torch.randn(8, 3), torch.arange(8) % 2)
    x = torch.randn(4, 3)
    before = means(x)
    means.prototypes[1] *= 100
    torch.testing.assert_close(means(x), before)


def test_class_means_of_some_classes_only() -> None:
    means = ClassMeans(3, device=CPU)
    means.grow(4)
    means.prototypes.normal_()
    x = torch.randn(5, 3)
    torch.testing.assert_close(means(x, slice(1, 3)), means(x)[:, 1:3])


# --- ridge regression -----------------------------------------------------------------------------------------------


def ridge_head(features: torch.Tensor, labels: torch.Tensor, ridge: float) -> RidgeHead:
    head = RidgeHead(features.shape[1], device=CPU)
    head.grow(int(labels.max()) + 1)
    head.add(features, labels)
    head.solve(ridge)
    return head


def least_squares(features: torch.Tensor, one_hot: np.ndarray, ridge: float) -> np.ndarray:
    """W without a product of H with itself: the least squares of [H; sqrt(ridge) I] W = [Y; 0]."""
    h = features.double().numpy()
    rows = np.concatenate([h, ridge**0.5 * np.eye(h.shape[1])])
    return np.linalg.lstsq(rows, np.concatenate([one_hot, np.zeros((h.shape[1], one_hot.shape[1]))]), rcond=None)[0]


def samples(number: int, width: int, classes: int = 3, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(number) % classes
    centres = torch.randn(classes, width, generator=generator)
    return (centres[labels] + torch.randn(number, width, generator=generator)).relu(), labels


def test_ridge_regression_by_hand() -> None:
    head = ridge_head(torch.tensor([[1.0, 0.0], [1.0, 1.0]]), torch.tensor([0, 1]), ridge=1.0)
    assert head.gram.tolist() == [[2, 1], [1, 1]]  # without the ridge
    assert head.targets.tolist() == [[1, 1], [0, 1]]
    # (G + I)^-1 = [[2, -1], [-1, 3]] / 5
    torch.testing.assert_close(head.weight, torch.tensor([[0.4, 0.2], [-0.2, 0.4]]))
    torch.testing.assert_close(head(torch.tensor([[1.0, 1.0]])), torch.tensor([[0.2, 0.6]]))
    assert head.ridge == 1


@pytest.mark.parametrize("width", [5, 40])
@pytest.mark.parametrize("ridge", [1e-3, 10.0])
def test_tasks_in_any_order_give_the_joint_solution(width, ridge) -> None:
    h, y = samples(24, width, classes=6)
    expected = least_squares(h, np.eye(6)[y], ridge)
    for order in itertools.permutations(range(3)):
        head = RidgeHead(width, device=CPU)
        for place, task in enumerate(order):  # classes are numbered as they come
            head.grow(2)
            mine = y // 2 == task
            head.add(h[mine], y[mine] % 2 + 2 * place)
            head.solve(ridge)
        columns = [2 * task + label for task in order for label in (0, 1)]
        np.testing.assert_allclose(head.weight.numpy(), expected[:, columns], rtol=1e-6, atol=1e-6)


def test_the_division_into_calls_changes_nothing() -> None:
    h, y = samples(2100, 4)  # more rows than are taken up at a time
    together, apart = ridge_head(h, y, 1.0), RidgeHead(4, device=CPU)
    apart.grow(3)
    for row, label in zip(h.split(7), y.split(7), strict=True):
        apart.add(row, label)
    torch.testing.assert_close(together.gram, apart.gram, rtol=1e-12, atol=0)
    torch.testing.assert_close(together.targets, apart.targets, rtol=1e-12, atol=0)
    np.testing.assert_allclose(together.gram.numpy(), h.double().numpy().T @ h.double().numpy(), rtol=1e-12)


def test_gram_is_symmetric_positive_and_grows() -> None:
    head, trace = RidgeHead(30, device=CPU), 0.0
    for task in range(4):
        head.grow(3)
        h, y = samples(9, 30, seed=task)
        head.add(h, y + 3 * task)
        head.solve(1.0)
        assert head.gram.dtype == head.targets.dtype == torch.float64
        torch.testing.assert_close(head.gram, head.gram.T, rtol=1e-12, atol=1e-12)
        assert np.linalg.eigvalsh(head.gram.numpy()).min() > -1e-9
        assert head.gram.trace() > trace
        trace = head.gram.trace().item()
    assert trace == pytest.approx(sum(samples(9, 30, seed=task)[0].double().square().sum().item() for task in range(4)))


def test_new_classes_have_no_logits_before_they_are_solved_for() -> None:
    head = ridge_head(*samples(9, 5), ridge=1.0)
    x = torch.randn(4, 5)
    before = head(x)
    head.grow(2)
    torch.testing.assert_close(head(x), torch.cat([before, torch.zeros(4, 2)], dim=1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert head(x.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize("rows", ["alike", "few", "many"])
def test_a_ridge_that_vanishes_beside_the_sums_is_raised(rows) -> None:
    h, y = samples({"alike": 90, "few": 10, "many": 90}[rows], 60)
    h = 1000 * (h[:1].expand(90, -1) if rows == "alike" else h)
    head = ridge_head(h, y, 1e-8)
    trace = h.double().square().sum().item()
    assert head.ridge >= np.finfo(np.float64).eps * trace > 1e-8
    assert head.ridge < 1e-12 * trace
    assert head.weight.isfinite().all()
    assert torch.equal(head.gram, ridge_head(h, y, 1.0).gram)  # it does not stay in the sums
    if rows == "alike":  # a third of the images are of each class
        torch.testing.assert_close(head(h[:2]), torch.full((2, 3), 1 / 3), atol=0.05, rtol=0)
    else:
        exact = least_squares(h, np.eye(3)[y], head.ridge.item())
        np.testing.assert_allclose(head(h), h.numpy() @ exact, atol=1e-4)
        other = 1000 * samples(20, 60, seed=1)[0]  # beside the span of what it has seen W is what rounding leaves
        np.testing.assert_allclose(head(other), other.double().numpy() @ exact, atol=0.1)


def test_class_means_that_are_not_finite_are_refused() -> None:
    means = ClassMeans(2, device=CPU)
    means.grow(2)
    with pytest.raises(TrainingError, match=r"class means: features are not finite; start anew"):
        means.add(torch.tensor([[1.0, 0.0], [torch.nan, 1.0]]), torch.tensor([0, 1]))
    assert not means.prototypes.any()


def test_features_that_are_not_finite_are_refused() -> None:
    head = ridge_head(*samples(9, 5), ridge=1.0)
    before = head.gram.clone()
    with pytest.raises(TrainingError, match=r"not finite; start anew with a lower fit\.learning_rate"):
        head.add(torch.full((2, 5), torch.nan), torch.tensor([0, 1]))
    assert torch.equal(head.gram, before)


@pytest.mark.parametrize(("fit", "width"), [(8, 30), (29, 30), (30, 30), (40, 12)])
def test_errors_of_all_ridges_in_either_form(fit, width, monkeypatch) -> None:
    """On both sides of fewer samples than features, against regressions one by one; classes without samples count for
    nothing, however many there are."""
    calls = []
    eigh = torch.linalg.eigh
    monkeypatch.setattr(torch.linalg, "eigh", lambda matrix: calls.append(matrix.shape) or eigh(matrix))
    monkeypatch.setattr(torch.linalg, "inv", lambda matrix: pytest.fail("an inverse"))
    h, y = samples(fit + 9, width)
    classes, y = np.eye(3), y + 10**9
    expected = [
        np.square(
            h[fit:].double().numpy() @ least_squares(h[:fit], classes[y[:fit] - 10**9], ridge)
            - classes[y[fit:] - 10**9]
        ).mean()
        for ridge in RIDGES
    ]
    errors = ridge_errors(h, y, fit=fit)
    np.testing.assert_allclose(errors.numpy(), expected, rtol=1e-5)
    assert calls == [(min(fit, width),) * 2]  # one factorisation, of the smaller product
    assert choose_ridge(h, y, fit=fit) == RIDGES[int(np.argmin(expected))]


def test_ridges_are_seventeen_powers_of_ten() -> None:
    assert np.log10(RIDGES).round(9).tolist() == list(range(-8, 9))


def test_errors_that_are_not_finite_never_win(monkeypatch) -> None:
    errors = torch.full((17,), torch.nan, dtype=torch.double)
    monkeypatch.setattr(ridge, "ridge_errors", lambda features, labels, fit, intercept: errors)
    errors[3], errors[9], errors[12] = -torch.inf, 0.5, torch.inf
    assert choose_ridge(*samples(9, 5), fit=7) == RIDGES[9]
    errors[11] = 0.25
    assert choose_ridge(*samples(9, 5), fit=7) == RIDGES[11]
    errors[:] = torch.nan
    with pytest.raises(TrainingError, match="no ridge has a finite error"):
        choose_ridge(*samples(9, 5), fit=7)


def test_the_chosen_ridge_fits_the_noise_of_the_labels() -> None:
    """Labels that features say exactly need next to none, labels that they say nothing about a large one."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(200) % 2
    told = torch.nn.functional.one_hot(labels).float() + 1e-4 * torch.randn(200, 2, generator=generator)
    assert choose_ridge(told, labels, fit=160) < 1e-2
    untold = torch.randn(200, 50, generator=generator)
    assert choose_ridge(untold, labels, fit=160) >= 100


@pytest.mark.parametrize("ridge", [1e-3, 10.0])
def test_an_intercept_is_held_back_by_no_ridge(ridge) -> None:
    h, y = samples(24, 5)
    head = RidgeHead(5, intercept=True, device=CPU)
    head.grow(3)
    head.add(h[:7], y[:7])
    head.add(h[7:], y[7:])
    head.solve(ridge)
    expected = Ridge(alpha=ridge).fit(h.numpy(), np.eye(3)[y])
    np.testing.assert_allclose(head(h).numpy(), expected.predict(h.numpy()), rtol=1e-5, atol=1e-5)
    far = RidgeHead(5, intercept=True, device=CPU)
    far.grow(3)
    far.add(h + 100, y)
    far.solve(ridge)
    torch.testing.assert_close(far(h + 100), head(h), rtol=1e-3, atol=1e-3)  # logits of float32 features around 100


@pytest.mark.parametrize("width", [5, 40])
def test_ridge_errors_with_an_intercept(width) -> None:
    h, y = samples(30, width)
    fits = (Ridge(alpha=ridge, solver="svd").fit(h[:24].double(), np.eye(3)[y[:24]]) for ridge in RIDGES)
    expected = [np.square(each.predict(h[24:].double()) - np.eye(3)[y[24:]]).mean() for each in fits]
    np.testing.assert_allclose(ridge_errors(h, y, fit=24, intercept=True).numpy(), expected, rtol=1e-5)


def test_a_task_is_fitted_with_the_ridge_chosen_on_it() -> None:
    h, y = samples(30, 5)
    for intercept in (False, True):
        head = RidgeHead(5, intercept=intercept, device=CPU)
        head.grow(3)
        assert head.is_empty()
        head.fit(h, y)
        assert not head.is_empty()
        ridge = choose_ridge(h, y, fit=24, intercept=intercept)
        assert head.ridge == ridge
        expected = Ridge(alpha=ridge, fit_intercept=intercept).fit(h.double(), np.eye(3)[y])
        np.testing.assert_allclose(head(h).numpy(), expected.predict(h.double()), rtol=1e-4, atol=1e-5)
        head.fit(h[:1], y[:1])  # which cannot be divided
        assert head.ridge == ridge


def test_a_single_class_says_nothing_of_a_ridge_with_an_intercept() -> None:
    """Its centred labels are zero, so that no ridge has an error: the one before stays."""
    h, y = samples(60, 5)
    head = RidgeHead(5, intercept=True, device=CPU)
    head.grow(4)
    head.fit(h, y)
    before = head.ridge.item()
    head.fit(torch.randn(20, 5), torch.full((20,), 3))
    assert head.ridge.item() == pytest.approx(before)
    assert head(h).argmax(dim=1).tolist() != [3] * 60


# --- features that have moved ---------------------------------------------------------------------------------------


def learned(kind: str, h: torch.Tensor, y: torch.Tensor, classes: int = 4):
    made = {"means": ClassMeans, "discriminant": Discriminant, "ridge": partial(RidgeHead, intercept=True)}[kind]
    statistics = made(h.shape[1], device=CPU)
    statistics.grow(classes)  # one of them without samples
    statistics.add(h, y)
    return statistics


def solved(statistics):
    match statistics:
        case Discriminant():
            statistics.solve()
        case RidgeHead():
            statistics.solve(0.1)
    return statistics


@pytest.mark.parametrize("kind", ["means", "discriminant", "ridge"])
def test_moved_statistics_are_those_of_the_moved_samples(kind) -> None:
    h, y = samples(40, 6)
    random = np.random.default_rng(0)
    weight, bias = random.normal(size=(6, 6)), random.normal(size=6)
    moved = torch.from_numpy(h.double().numpy() @ weight.T + bias)
    statistics = learned(kind, h, y)
    statistics.move(torch.from_numpy(weight), torch.from_numpy(bias))
    expected = learned(kind, moved.float(), y)
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(statistics.state_dict()[name], value, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(solved(statistics)(moved.float()), solved(expected)(moved.float()), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", ["means", "discriminant", "ridge"])
def test_the_identity_moves_nothing(kind) -> None:
    h, y = samples(40, 6)
    statistics, expected = learned(kind, h, y), learned(kind, h, y)
    statistics.move(torch.eye(6, dtype=torch.double), torch.zeros(6, dtype=torch.double))
    for name, value in expected.state_dict().items():
        assert torch.equal(statistics.state_dict()[name], value), name


def test_sums_without_an_intercept_cannot_be_shifted() -> None:
    with pytest.raises(ValueError, match="expected a regression with an intercept"):
        ridge_head(*samples(9, 3), ridge=1.0).move(torch.eye(3, dtype=torch.double), torch.ones(3, dtype=torch.double))


def regression_to_the_identity(before: np.ndarray, after: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(1) by least squares of stacked rows, with the damping that (2) finds with H written out."""
    n, width = before.shape
    x, r = before - before.mean(0), (after - before) - (after - before).mean(0)
    v = np.square(x).sum() / min(n - 1, width)
    found = []
    for damping in DAMPING:
        if damping == np.inf:
            change, hat = np.zeros((width, width)), np.full((n, n), 1 / n)
        else:
            stacked = np.concatenate([x, (damping * v) ** 0.5 * np.eye(width)])
            change = np.linalg.lstsq(stacked, np.concatenate([r, np.zeros((width, width))]), rcond=None)[0]
            hat = np.full((n, n), 1 / n) + x @ np.linalg.solve(x.T @ x + damping * v * np.eye(width), x.T)
        found.append((np.square(r - hat @ r).sum() / (1 - np.trace(hat) / n) ** 2, change))
    change = min(found, key=lambda pair: pair[0])[1]
    weight = np.eye(width) + change.T
    return weight, after.mean(0) - weight @ before.mean(0)


@pytest.mark.parametrize(("number", "width"), [(50, 6), (12, 30), (7, 6)])
@pytest.mark.parametrize("noise", [0.01, 1.0])
def test_drift_is_a_regression_towards_the_identity(number, width, noise) -> None:
    random = np.random.default_rng(number)
    before = random.normal(size=(number, width)) * random.uniform(0.5, 3, width) + 2
    after = before @ (np.eye(width) + 0.3 * random.normal(size=(width, width))).T + 1
    after += noise * random.normal(size=(number, width))
    weight, bias = affine_drift(torch.from_numpy(before), torch.from_numpy(after))
    expected = regression_to_the_identity(before, after)
    np.testing.assert_allclose(weight.numpy(), expected[0], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(bias.numpy(), expected[1], rtol=1e-6, atol=1e-6)


def test_a_map_without_noise_is_found() -> None:
    random = np.random.default_rng(0)
    before, weight, bias = random.normal(size=(500, 4)), random.normal(size=(4, 4)), random.normal(size=4)
    found = affine_drift(torch.from_numpy(before), torch.from_numpy(before @ weight.T + bias))
    np.testing.assert_allclose(found[0], weight, atol=1e-3)
    np.testing.assert_allclose(found[1], bias, atol=1e-3)


def test_features_that_stay_have_the_identity_to_the_bit() -> None:
    before = torch.randn(20, 6, generator=torch.Generator().manual_seed(0))
    weight, bias = affine_drift(before, before.clone())
    assert torch.equal(weight, torch.eye(6, dtype=torch.double))
    assert not bias.any()


def test_noise_alone_is_a_shift() -> None:
    random = np.random.default_rng(0)
    before = random.normal(size=(30, 20))
    weight, bias = affine_drift(torch.from_numpy(before), torch.from_numpy(before + 2 + random.normal(size=(30, 20))))
    assert np.abs(weight.numpy() - np.eye(20)).max() < 0.1
    np.testing.assert_allclose(bias.numpy(), 2, atol=1)


def test_the_scale_of_features_does_not_matter() -> None:
    random = np.random.default_rng(1)
    before, after = (torch.from_numpy(random.normal(size=(12, 8))) for _ in range(2))
    weight, bias = affine_drift(before, before + 0.1 * after)
    other, larger = affine_drift(1e3 * before, 1e3 * (before + 0.1 * after))
    torch.testing.assert_close(other, weight)
    torch.testing.assert_close(larger, 1e3 * bias)


def test_directions_in_which_samples_do_not_vary_stay() -> None:
    random = np.random.default_rng(2)
    before = np.concatenate([random.normal(size=(40, 3)), np.full((40, 3), 5.0)], axis=1)
    after = before.copy()
    after[:, 3:] += 2 * before[:, :3]
    weight, _ = affine_drift(torch.from_numpy(before), torch.from_numpy(after))
    np.testing.assert_allclose(weight.numpy()[3:, :3], 2 * np.eye(3), atol=0.01)
    np.testing.assert_allclose(weight.numpy()[:, 3:], np.eye(6)[:, 3:], atol=1e-9)


@pytest.mark.parametrize("number", [1, 3])
def test_samples_that_are_alike_say_how_far_and_not_how(number) -> None:
    before, after = torch.rand(1, 4), torch.rand(1, 4)
    weight, bias = affine_drift(before.expand(number, 4), after.expand(number, 4))
    assert torch.equal(weight, torch.eye(4, dtype=torch.double))
    torch.testing.assert_close(bias, (after - before)[0].double(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_features_that_are_not_finite_have_no_map(bad) -> None:
    before, after = torch.rand(3, 4), torch.rand(3, 4)
    after[1, 1] = bad
    for pair in ((before, after), (after, before)):
        with pytest.raises(TrainingError, match=r"evaluate\.drift: features are not finite"):
            affine_drift(*pair)


# --- discriminant ---------------------------------------------------------------------------------------------------


def discriminant(features: torch.Tensor, labels: torch.Tensor, shrinkage: float = 0.2) -> Discriminant:
    found = Discriminant(features.shape[1], device=CPU)
    found.grow(int(labels.max()) + 1)
    found.add(features, labels)
    found.solve(shrinkage)
    return found


@pytest.mark.parametrize("shrinkage", [0.01, 0.2, 1.0])
def test_discriminant_ranks_as_that_of_scikit_learn(shrinkage) -> None:
    """Theirs divides by N where ours divides by N - C, so that logits differ by that factor and by what all classes
    share."""
    features, labels = samples(60, 5)
    ours = discriminant(features, labels, shrinkage)(features).double().numpy()
    theirs = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage).fit(features.double(), labels)
    expected = theirs.decision_function(features.double()) * (60 - 3) / 60
    apart = ours - expected
    np.testing.assert_allclose(apart - apart.mean(axis=1, keepdims=True), 0, atol=1e-4)


@given(cuts=st.lists(st.integers(1, 39), max_size=4, unique=True), seed=st.integers(0, 100))
@settings(max_examples=25, deadline=None)
def test_neither_order_nor_division_changes_a_discriminant(cuts, seed) -> None:
    """Images of a class that come later, and in several parts, count like the first."""
    features, labels = samples(40, 6)
    at_once = discriminant(features, labels)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(seed))
    parts = np.split(order.numpy(), sorted(cuts))
    in_parts = Discriminant(6, device=CPU)
    in_parts.grow(3)
    for part in parts:
        in_parts.add(features[part], labels[part])
    in_parts.solve(0.2)
    assert in_parts.counts.tolist() == at_once.counts.tolist()
    torch.testing.assert_close(in_parts.means, at_once.means, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(in_parts.scatter, at_once.scatter, atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(in_parts(features), at_once(features), atol=1e-5, rtol=1e-4)


def test_joined_discriminants_are_that_of_all_their_samples() -> None:
    """Two that went apart after classes 0 and 1: one learned 2, the other 3 and 4; both saw more of class 1."""
    features, labels = samples(60, 6, classes=5)
    known = labels < 2
    known[30:] = False
    ours = (labels == 2) | ((labels == 1) & (torch.arange(60) >= 45))
    theirs = ~known & ~ours & (labels != 0)
    late = (labels == 0) & ~known  # of which only the other one saw more
    theirs |= late
    common = discriminant(features[known], labels[known])
    one, other = copy.deepcopy(common), copy.deepcopy(common)
    one.grow(1)
    one.add(features[ours], labels[ours])
    other.grow(2)
    other.add(features[theirs], torch.where(labels[theirs] > 2, labels[theirs] - 1, labels[theirs]))
    one.join(other, common, [0, 1, 3, 4])
    one.solve(0.2)
    expected = discriminant(features, labels)
    assert one.counts.tolist() == [12] * 5
    torch.testing.assert_close(one.means, expected.means)
    torch.testing.assert_close(one(features), expected(features), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("kind", [ClassMeans, Discriminant, RidgeHead])
def test_joined_statistics_are_those_of_all_samples(kind, shared) -> None:
    """Classes 0 and 1 are in both, 2 in one, 3 and 4 in the other, where 4 comes before 3 and 1 last."""
    features, labels = samples(80, 6, classes=5)
    once = (torch.arange(80) < 20) & (labels < 2) & shared
    mine = ~once & ((labels == 2) | ((labels < 2) & (torch.arange(80) < 50)))
    theirs = ~once & ~mine

    def made(*arrivals: torch.Tensor, places: list[int], classes: int):
        statistics = kind(6, device=CPU)
        statistics.grow(classes)
        for which in arrivals:
            if which.any():
                statistics.add(features[which], torch.tensor([places.index(each) for each in labels[which].tolist()]))
        return statistics

    places = [0, 1, 4, 3] if shared else [4, 0, 3, 1]
    common = made(once, places=[0, 1], classes=2) if shared else None
    one, whole = made(once, mine, places=[0, 1, 2], classes=3), made(once, mine, theirs, places=[*range(5)], classes=5)
    other = made(once, theirs, places=places, classes=4)
    if isinstance(other, RidgeHead):
        other.solve(0.5)
    one.join(other, common, places)
    state, expected = one.state_dict(), whole.state_dict()
    names = {"counts", "freedom", "prototypes", "means", "scatter", "gram", "targets"} & state.keys()
    assert len(names) >= 2
    for name in names:
        tolerance = 1e-6 if name == "prototypes" else 1e-10
        torch.testing.assert_close(state[name], expected[name], rtol=tolerance, atol=tolerance)
    assert whole.contains(one)
    assert not made(once, mine, places=[*range(5)], classes=5).contains(whole)
    if isinstance(one, RidgeHead):
        assert one.ridge == 0.5


def test_the_scatter_is_stored_as_a_triangle_of_the_symmetric_matrix() -> None:
    features, labels = samples(30, 4)
    centred = np.concatenate([features[labels == c] - features[labels == c].mean(0) for c in range(3)]).astype(float)
    expected = centred.T @ centred
    found = discriminant(features, labels).scatter
    assert found.shape == (10,)
    np.testing.assert_allclose(found, expected[np.triu_indices(4)], atol=1e-5)


@pytest.mark.parametrize("copies", [1, 3])
def test_classes_without_scatter_are_compared_by_distance(copies) -> None:
    """One image a class, or the same one several times: nothing is known of a covariance."""
    features = torch.randn(4, 5).repeat(copies, 1)
    found = discriminant(features, torch.arange(4).repeat(copies))
    x = torch.randn(20, 5)
    distances = torch.cdist(x, features[:4])
    assert found(x).argmax(dim=1).tolist() == distances.argmin(dim=1).tolist()


def test_fewer_samples_than_features_and_a_vanishing_shrinkage_have_a_factorisation() -> None:
    features, labels = samples(6, 50)
    found = discriminant(1e6 * features, labels, shrinkage=1e-300)
    assert found(1e6 * features).argmax(dim=1).tolist() == labels.tolist()


def test_a_class_without_samples_has_no_say() -> None:
    found = Discriminant(3, device=CPU)
    found.grow(3)
    found.add(torch.randn(8, 3) + 5, torch.arange(8) % 2)
    found.solve(0.2)
    assert found.weight[2].abs().max() == 0
    assert found.weight[:2].isfinite().all()


def test_features_that_are_not_finite_never_enter_a_discriminant() -> None:
    found = discriminant(*samples(12, 3))
    before = {name: value.clone() for name, value in found.named_buffers()}
    with pytest.raises(TrainingError, match=r"discriminant: features are not finite; start anew"):
        found.add(torch.tensor([[1.0, float("inf"), 0.0]]), torch.tensor([0]))
    assert all(torch.equal(value, before[name]) for name, value in found.named_buffers())

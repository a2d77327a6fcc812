"""Classes taken out of sums, and added without moving old logits, against statistics that never saw them and against
numpy."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lorica.errors import LoricaError
from lorica.linalg import unpacked
from lorica.parts import Parts, additions_in, moved_by, parts_of, taken_up, without
from lorica.statistics import AlignedHead, ClassMeans, Discriminant, RidgeHead

CPU = torch.device("cpu")
Addition = tuple[Tensor, Tensor]
Statistics = ClassMeans | Discriminant | RidgeHead

MADE: dict[str, Callable[[int], Statistics]] = {
    "means": partial(ClassMeans, device=CPU),
    "discriminant": partial(Discriminant, device=CPU),
    "ridge": partial(RidgeHead, device=CPU),
    "ridge with intercept": partial(RidgeHead, intercept=True, device=CPU),
}


def drawn(numbers: dict[int, int], width: int, seed: int, scale: dict[int, float] | None = None) -> Addition:
    """That many samples of each class, around a centre of its own, in random order."""
    random = np.random.default_rng(seed)
    labels = random.permutation(np.repeat(list(numbers), list(numbers.values())))
    centres = np.random.default_rng(99).normal(size=(20, width))[labels]
    features = centres + random.normal(size=(len(labels), width))
    features *= np.array([(scale or {}).get(label, 1.0) for label in labels])[:, None]
    return torch.from_numpy(features).float(), torch.from_numpy(labels)


def only(addition: Addition, classes: set[int]) -> Addition:
    own = torch.tensor([label in classes for label in addition[1].tolist()])
    return addition[0][own], addition[1][own]


def learned(kind: str, additions: list[Addition], classes: int) -> tuple[Statistics, list[dict[str, Tensor]]]:
    """Statistics of these additions, and the parts of each."""
    made, parts = MADE[kind](additions[0][0].shape[1]), []
    made.grow(classes)
    for features, labels in additions:
        if len(labels):
            made.add(features, labels)
            parts.append(made.parts(features, labels))
    return made, parts


def second_order(made: Statistics) -> Tensor:
    match made:
        case Discriminant():
            return unpacked(made.scatter, made.width)
        case RidgeHead():
            return made.gram
    return torch.zeros(0, 0)


def assert_same(found: Statistics, expected: Statistics) -> None:
    """To 1e-9 of the diagonal, which is the scale of a feature; what is of single classes, to the bit."""
    for name, value in expected.state_dict().items():
        if name not in ("scatter", "gram", "weight", "bias", "ridge", "centred"):
            assert torch.equal(found.state_dict()[name], value), name
    one, other = second_order(found), second_order(expected)
    scale = other.diagonal().sqrt()
    assert ((one - other).abs() <= 1e-9 * scale[:, None] * scale).all()


def assert_same_solution(found: Statistics, expected: Statistics) -> None:
    """In float64 to 1e-9, in float32 to its rounding."""
    match found, expected:
        case Discriminant(), Discriminant():
            for each in (found, expected):
                each.solve(0.2)
            seen = expected.counts.nonzero().flatten()
            for one, other in zip(found._rows(seen, 0.2), expected._rows(seen, 0.2), strict=True):
                assert (one - other).norm() <= 1e-9 * other.norm()
        case RidgeHead(), RidgeHead():
            ridge = 0.1 * expected.gram.diagonal().mean().item() or 1.0
            one, other = (
                torch.linalg.solve(each.gram + ridge * torch.eye(len(each.gram)).double(), each.targets)
                for each in (found, expected)
            )
            assert (one - other).norm() <= 1e-9 * other.norm()
            for each in (found, expected):
                each.solve(ridge)
    for name in ("weight", "bias"):
        if hasattr(expected, name):
            one, other = getattr(found, name), getattr(expected, name)
            assert (one - other).norm() <= 1e-6 * other.norm(), name


# --- forgetting -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", MADE)
@given(data=st.data(), width=st.integers(1, 7), seed=st.integers(0, 1000))
@settings(max_examples=40)
def test_what_is_forgotten_was_never_seen(kind, data, width, seed) -> None:
    """One sample and more than there are features, one addition and several, classes alone and together, all of them
    and none, small features and large ones."""
    classes = data.draw(st.integers(1, 5))
    numbers = st.dictionaries(st.integers(0, classes - 1), st.integers(1, 12), min_size=1)
    scale = {label: 10.0 ** data.draw(st.integers(-4, 4)) for label in range(classes)}
    additions = [
        drawn(each, width, seed + place, scale)
        for place, each in enumerate(data.draw(st.lists(numbers, min_size=1, max_size=4)))
    ]
    gone = data.draw(st.sets(st.integers(0, classes - 1)))
    found, parts = learned(kind, additions, classes)
    found.forget(gone, Parts(parts))
    kept = set(range(classes)) - gone
    expected, _ = learned(kind, [only(each, kept) for each in additions], classes)
    assert_same(found, expected)
    assert_same_solution(found, expected)


@pytest.mark.parametrize("kind", MADE)
def test_a_class_of_huge_features_leaves_no_rounding(kind) -> None:
    """Subtracted, their squares would have left none of the digits that the others have."""
    additions = [drawn({0: 5, 1: 9}, 4, 0), drawn({2: 20}, 4, 1, {2: 1e9}), drawn({0: 3}, 4, 2)]
    found, parts = learned(kind, additions, 3)
    found.forget([2], Parts(parts))
    expected, _ = learned(kind, [additions[0], additions[2]], 3)
    assert_same(found, expected)
    assert_same_solution(found, expected)


@pytest.mark.parametrize("kind", ["discriminant", "ridge"])
def test_sums_that_nearly_vanish_are_added_up_anew_or_not_at_all(kind) -> None:
    additions = [drawn({0: 5}, 4, 0), drawn({1: 20}, 4, 1, {1: 1e9})]
    found, parts = learned(kind, additions, 2)
    before = {name: value.clone() for name, value in found.state_dict().items()}
    with pytest.raises(LoricaError, match="class 0 cannot be taken out of sums"):
        found.forget([1], Parts(parts[1:]))  # without those of the class that stays
    assert all(torch.equal(value, before[name]) for name, value in found.state_dict().items())


@pytest.mark.parametrize("kind", ["discriminant", "ridge", "ridge with intercept"])
def test_other_parts_are_not_read_where_a_subtraction_does(kind) -> None:
    additions = [drawn({0: 30}, 4, 0), drawn({1: 20, 2: 1}, 4, 1)]
    found, parts = learned(kind, additions, 3)
    found.forget([1, 2], Parts([parts[1]]))
    assert_same(found, learned(kind, additions[:1], 3)[0])


@pytest.mark.parametrize("kind", MADE)
def test_where_all_is_forgotten_nothing_is_left(kind) -> None:
    additions = [drawn({0: 5, 1: 3}, 4, 0), drawn({0: 2}, 4, 1)]
    found, parts = learned(kind, additions, 2)
    found.forget([0, 1], Parts(parts))
    assert found.is_empty()
    assert not any(value.any() for name, value in found.state_dict().items() if name != "ridge")
    match found:
        case Discriminant():
            found.solve()
        case RidgeHead():
            found.solve(1.0)
    assert not found(torch.randn(3, 4)).any()


@pytest.mark.parametrize("kind", MADE)
def test_a_forgotten_class_that_returns_is_new(kind) -> None:
    additions = [drawn({0: 5, 1: 3}, 4, 0), drawn({1: 6, 2: 4}, 4, 1)]
    again = drawn({1: 7, 0: 2}, 4, 2)
    found, parts = learned(kind, additions, 3)
    found.forget([1], Parts(parts))
    found.add(*again)
    expected, _ = learned(kind, [*(only(each, {0, 2}) for each in additions), again], 3)
    assert_same(found, expected)
    assert_same_solution(found, expected)
    # and can be forgotten once more, with what was recorded since
    parts = [without(each, [1]) for each in parts] + [found.parts(*again)]
    found.forget([1], Parts(parts))
    assert_same(found, learned(kind, [only(each, {0, 2}) for each in [*additions, again]], 3)[0])


@pytest.mark.parametrize("kind", ["discriminant", "ridge", "ridge with intercept"])
@pytest.mark.parametrize("wrong", ["missing", "stale"])
def test_parts_of_other_samples_are_refused(kind, wrong) -> None:
    additions = [drawn({0: 5, 1: 3}, 4, 0), drawn({1: 6, 2: 4}, 4, 1)]
    found, parts = learned(kind, additions, 3)
    before = {name: value.clone() for name, value in found.state_dict().items()}
    given = {"missing": parts[:1], "stale": [*parts, parts[1]]}[wrong]
    with pytest.raises(LoricaError, match="class 1 cannot be taken out of sums"):
        found.forget([0, 1], Parts(given))
    assert all(torch.equal(value, before[name]) for name, value in found.state_dict().items())


@pytest.mark.parametrize("kind", ["discriminant", "ridge with intercept"])
def test_parts_move_with_the_features(kind) -> None:
    """Two moves between three additions; the statistics of the others are those that were moved without it."""
    random = np.random.default_rng(0)
    additions = [drawn({0: 5, 1: 3}, 4, 0), drawn({1: 6, 2: 9}, 4, 1), drawn({0: 4, 2: 4}, 4, 2)]
    maps = [
        (torch.from_numpy(np.eye(4) + 0.3 * random.normal(size=(4, 4))), torch.from_numpy(random.normal(size=4)))
        for _ in range(2)
    ]

    def moved(classes: set[int]) -> tuple[Statistics, list[dict[str, Tensor]]]:
        made, parts = MADE[kind](4), []
        made.grow(3)
        for place, addition in enumerate(additions):
            own, noted = only(addition, classes), {}
            if place:
                made.move(*maps[place - 1])
                noted = moved_by(*maps[place - 1])
            made.add(*own)
            parts.append(noted | made.parts(*own))
        return made, parts

    found, parts = moved({0, 1, 2})
    found.forget([0], Parts(parts))
    expected, _ = moved({1, 2})
    one, other = second_order(found), second_order(expected)
    assert (one - other).norm() <= 1e-9 * other.norm()
    assert_same_solution(found, expected)


def test_parts_by_hand() -> None:
    features = torch.tensor([[1.0, 0.0], [3.0, 4.0], [5.0, 5.0], [5.0, 2.0]])
    parts = parts_of(features, torch.tensor([7, 7, 2, 7]), centred=True)
    assert {name: int(value) for name, value in parts.items() if name.endswith("count")} == {"7.count": 3, "2.count": 1}
    assert parts["7.mean"].tolist() == [3, 2]
    # of (-2, -2), (0, 2), (2, 0)
    torch.testing.assert_close(parts["7.factor"].T @ parts["7.factor"], torch.tensor([[8.0, 4.0], [4.0, 8.0]]).double())
    assert parts["7.factor"].shape == (2, 2)
    assert parts["2.factor"].tolist() == [[0, 0]]
    assert parts["7.factor"].dtype == parts["7.mean"].dtype == torch.float64
    assert without({f"learner.discriminant.{name}": value for name, value in parts.items()}, [7]).keys() == {
        f"learner.discriminant.2.{name}" for name in ("count", "mean", "factor")
    }
    assert without(moved_by(torch.eye(2).double(), torch.ones(2).double()), [0, 1, 2]).keys() == {
        "moved.weight",
        "moved.bias",
    }


def test_parts_of_modules_within_modules() -> None:
    addition = {f"learner.means.{name}": value for name, value in parts_of(*drawn({3: 4}, 2, 0), centred=True).items()}
    assert Parts([addition, addition]).within("learner").within("means").count(3) == 8
    assert Parts([addition]).within("means").count(3) == 0
    assert list(Parts([addition]).within("learner.means").of(2)) == []


def test_nothing_is_drawn_of_a_forgotten_class() -> None:
    head = AlignedHead(3, device=CPU)
    head.grow(3)
    head.fit(*drawn({0: 6, 1: 6, 2: 6}, 3, 0))
    head.start()
    kept = head.weight[[0, 2]].clone()
    head.forget([1])
    assert head.shares()[:, 0].tolist() == [0, 2]
    assert head.remembered().tolist() == [True, False, True]
    assert not head.weight[1].any()
    assert torch.equal(head.weight[[0, 2]], kept)


# --- freezing -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", MADE)
@pytest.mark.parametrize("first", [1, 2, 31, 32, 33])
def test_old_logits_keep_their_bits(kind, first) -> None:
    """Whatever the number of old classes and of new ones, for batches of any size."""
    made, _ = learned(kind, [drawn({label % 20: 3 for label in range(min(first, 20))}, 33, 0)], first)
    if first > 20:
        made.add(torch.randn(3 * (first - 20), 33), torch.arange(20, first).repeat(3))
    match made:
        case Discriminant():
            made.solve(0.2)
        case RidgeHead():
            made.solve(0.1)
    batches = [torch.randn(size, 33) for size in (1, 2, 7, 64)]
    before = [made(batch) for batch in batches]
    for new in (1, 2, 40):
        labels = torch.arange(len(made(batches[0])[0]), len(made(batches[0])[0]) + new).repeat(2)
        made.grow(new)
        match made:
            case ClassMeans():
                made.add(torch.randn(2 * new, 33), labels)
            case Discriminant():
                made.add_frozen(torch.randn(2 * new, 33), labels)
            case RidgeHead():
                made.fit_frozen(torch.randn(2 * new, 33), labels)
        for batch, old in zip(batches, before, strict=True):
            assert torch.equal(made(batch)[:, :first], old)
            assert made(batch)[:, first:].any(dim=0).all()


def by_numpy(
    scatter: np.ndarray, freedom: int, means: np.ndarray, centre: np.ndarray, x: np.ndarray, g: float = 0.2
) -> np.ndarray:
    """(1) and (2), with an inverse."""
    sigma = scatter / freedom
    inverse = np.linalg.inv((1 - g) * sigma + g * np.trace(sigma) / len(sigma) * np.eye(len(sigma)))
    rows = (means - centre) @ inverse
    return (x - centre) @ rows.T - np.einsum("cd,cd->c", rows, means - centre) / 2


def scatter_of(addition: Addition) -> np.ndarray:
    features, labels = (each.double().numpy() for each in addition)
    rows = np.concatenate(
        [features[labels == label] - features[labels == label].mean(0) for label in np.unique(labels)]
    )
    return rows.T @ rows


def means_of(*additions: Addition) -> np.ndarray:
    features, labels = (np.concatenate([each[place].double().numpy() for each in additions]) for place in (0, 1))
    return np.stack([features[labels == label].mean(0) for label in np.unique(labels)])


def test_frozen_classes_have_the_covariance_and_the_centre_of_the_others() -> None:
    first, second, third = drawn({0: 9, 1: 8}, 4, 0), drawn({2: 7}, 4, 1), drawn({3: 5}, 4, 2)
    made, _ = learned("discriminant", [first], 4)
    assert isinstance(made, Discriminant)
    made.solve(0.2)
    scatter = made.scatter.clone()
    made.add_frozen(*second)
    made.add_frozen(*third)
    assert torch.equal(made.scatter, scatter)
    assert made.counts.tolist() == [9, 8, 7, 5]
    assert made.freedom.tolist() == [8, 7, 0, 0]
    x, means, centre = torch.randn(6, 4), means_of(first, second, third), means_of(first).mean(0)
    expected = by_numpy(scatter_of(first), 15, means, centre, x.double().numpy())
    np.testing.assert_allclose(made(x), expected, rtol=1e-4, atol=1e-4)
    # solved anew: with all means in the centre, and S over what it is of
    fourth = drawn({4: 6}, 4, 3)
    made.grow(1)
    made.add(*fourth)
    made.solve(0.2)
    means = means_of(first, second, third, fourth)
    expected = by_numpy(scatter_of(first) + scatter_of(fourth), 15 + 5, means, means.mean(0), x.double().numpy())
    np.testing.assert_allclose(made(x), expected, rtol=1e-4, atol=1e-4)


def test_later_samples_of_a_frozen_class_count_for_what_they_add() -> None:
    """Their scatter and the step between two means: as many degrees of freedom as samples."""
    first, frozen, later = drawn({0: 9, 1: 8}, 4, 0), drawn({2: 7}, 4, 1), drawn({2: 6}, 4, 2)
    made, parts = learned("discriminant", [first], 3)
    assert isinstance(made, Discriminant)
    made.solve(0.2)
    made.add_frozen(*frozen)
    parts.append(made.parts(*frozen, frozen=True))
    made.add(*later)
    parts.append(made.parts(*later))
    assert made.freedom.tolist() == [8, 7, 6]
    step = means_of(later)[0] - means_of(frozen)[0]
    expected = scatter_of(first) + scatter_of(later) + 7 * 6 / 13 * np.outer(step, step)
    np.testing.assert_allclose(unpacked(made.scatter, 4), expected, rtol=1e-9)
    made.forget([2], Parts(parts))
    assert_same(made, learned("discriminant", [first], 3)[0])


def test_the_mean_over_draws_of_such_a_covariance_is_the_true_one() -> None:
    """What the degrees of freedom are for: normal samples of variance 1, few of each class."""
    found = []
    for seed in range(400):
        generator = torch.Generator().manual_seed(seed)
        made = Discriminant(2, device=CPU)
        made.grow(2)
        made.add(torch.randn(2, 2, generator=generator), torch.zeros(2, dtype=torch.long))
        made.solve()
        made.add_frozen(torch.randn(2, 2, generator=generator), torch.ones(2, dtype=torch.long))
        made.add(torch.randn(2, 2, generator=generator), torch.ones(2, dtype=torch.long))
        found.append(unpacked(made.scatter, 2).diagonal().mean().item() / int(made.freedom.sum()))
    assert np.mean(found) == pytest.approx(1, abs=0.12)  # four deviations; N - C would make it 3/4


def test_a_frozen_column_is_that_of_a_regression_on_all_samples() -> None:
    first, second, third = drawn({0: 9, 1: 8}, 4, 0), drawn({2: 7}, 4, 1), drawn({0: 3, 3: 9}, 4, 2)
    for kind in ("ridge", "ridge with intercept"):
        made, _ = learned(kind, [first], 3)
        assert isinstance(made, RidgeHead)
        made.solve(0.5)
        old = made.weight[:, :2].clone()
        made.fit_frozen(*second)
        whole, _ = learned(kind, [first, second], 3)
        assert isinstance(whole, RidgeHead)
        whole.solve(0.5)
        torch.testing.assert_close(made.weight[:, 2], whole.weight[:, 2])
        assert torch.equal(made.weight[:, :2], old)
        assert not torch.allclose(old, whole.weight[:, :2])
        for each in (made, whole):  # and then everything is as if nothing had been frozen
            each.grow(1)
            each.fit(*third)
        torch.testing.assert_close(made.weight, whole.weight)


@pytest.mark.parametrize("kind", ["discriminant", "ridge"])
def test_frozen_samples_of_a_known_class_or_before_any_are_refused(kind) -> None:
    made, _ = learned(kind, [drawn({0: 5, 1: 5}, 4, 0)], 3)
    assert isinstance(made, Discriminant | RidgeHead)
    made.solve(0.2)
    empty = MADE[kind](4)
    empty.grow(1)
    for each, addition in ((made, drawn({1: 2, 2: 2}, 4, 1)), (empty, drawn({0: 2}, 4, 1))):
        before = {name: value.clone() for name, value in each.state_dict().items()}
        add = each.add_frozen if isinstance(each, Discriminant) else each.fit_frozen
        with pytest.raises(ValueError, match="expected new classes, beside others"):
            add(*addition)
        assert all(torch.equal(value, before[name]) for name, value in each.state_dict().items())


def test_a_joined_discriminant_knows_what_its_scatter_is_of() -> None:
    first, frozen, theirs = drawn({0: 9, 1: 8}, 4, 0), drawn({2: 7}, 4, 1), drawn({1: 3, 2: 6}, 4, 2)
    common, parts = learned("discriminant", [first], 2)
    assert isinstance(common, Discriminant)
    common.solve(0.2)
    one, other = copy.deepcopy(common), copy.deepcopy(common)
    one.grow(1)
    one.add_frozen(*frozen)
    other.grow(1)
    other.add(*theirs)
    one.join(other, common, [0, 1, 3])
    assert one.counts.tolist() == [9, 11, 7, 6]
    assert one.freedom.tolist() == [8, 10, 0, 5]
    expected, _ = learned("discriminant", [first, theirs], 3)
    assert isinstance(expected, Discriminant)
    torch.testing.assert_close(one.scatter, expected.scatter)
    # a class that the common one has forgotten, and both have learned again
    common.forget([1], Parts(parts))
    left, right = copy.deepcopy(common), copy.deepcopy(common)
    left.add(*drawn({1: 4}, 4, 5))
    right.add(*drawn({1: 3}, 4, 6))
    left.join(right, common, [0, 1])
    assert left.freedom.tolist() == [8, 6]


def test_parts_that_were_taken_up_are_in_features_as_they_are() -> None:
    """Two additions with a move between them, renumbered; a frozen one of a class that is known here has an empty
    factor."""
    (first, second), weight, bias = (
        (drawn({0: 5, 1: 4}, 3, 0), drawn({1: 6}, 3, 1)),
        torch.rand(3, 3).double(),
        torch.ones(3),
    )
    additions = [
        {f"here.{name}": value for name, value in each.items()}
        for each in (
            parts_of(*first, centred=True, factors=False),
            parts_of(*second, centred=True) | moved_by(weight, bias.double()),
        )
    ]
    taken = additions_in(taken_up(Parts(additions), "here", [7, 2], range(3)))
    assert len(taken) == 2
    found = Parts(taken, "here")
    assert (found.count(7), found.count(2), found.count(0), found.count(1)) == (5, 10, 0, 0)
    mean = first[0][first[1] == 1].double().mean(dim=0)
    early, late = found.of(2)
    torch.testing.assert_close(early.mean, weight @ mean + bias)
    assert early.factor is not None
    assert early.factor.shape == (0, 3)
    assert next(found.of(7)).factor is None
    centred = second[0].double() - second[0].double().mean(dim=0)
    assert late.factor is not None
    torch.testing.assert_close(late.factor.T @ late.factor, centred.T @ centred)


# --- states of earlier versions -------------------------------------------------------------------------------------


def test_what_an_earlier_version_did_not_store_follows_from_its_counts() -> None:
    made, _ = learned("discriminant", [drawn({0: 9, 2: 1}, 4, 0)], 3)
    assert isinstance(made, Discriminant)
    made.solve()
    state = made.state_dict()
    assert {name: value.tolist() for name, value in made.completed({"counts": made.counts}).items()} == {
        "freedom": state["freedom"].tolist(),
        "centred": state["centred"].tolist(),
    }
    assert state["freedom"].tolist() == [8, 0, 0]
    assert state["centred"].tolist() == [True, False, True]
    assert made.completed({}) == {}


@pytest.mark.parametrize(
    ("name", "value"), [("freedom", [9, 0]), ("freedom", [-1, 0]), ("centred", [True, True]), ("counts", [-1, 0])]
)
def test_values_that_cannot_be_are_faults(name, value) -> None:
    made, _ = learned("discriminant", [drawn({0: 8}, 4, 0)], 2)
    assert isinstance(made, Discriminant)
    assert list(made.faults(made.state_dict())) == []
    wrong = {**made.state_dict(), name: torch.tensor(value)}
    assert [each for each, _ in made.faults(wrong)] == [name]

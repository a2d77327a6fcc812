"""What two models have learned apart, joined, is what one has learned that was given all of it; and what refuses to be
joined."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from lorica.backbones.encoder import Encoder
from lorica.data.images import ImageReader
from lorica.data.stream import Stream
from lorica.errors import LoricaError
from lorica.linalg import unpacked
from lorica.methods import Method, build_method, find_method
from lorica.parts import Parts, additions_in, taken_up
from lorica.statistics import ClassMeans, Discriminant, RidgeHead
from lorica.training import Fit, learn_task
from lorica.types import Batch, Task

FIT = Fit(1, 8, "adam", 0.002, 0.9, 0.0, "constant", "none")
MAKE = Callable[..., Encoder]

# nobody trains a trunk
PLAIN: dict[str, tuple[str, dict, dict]] = {
    "rolda": ("rolda", {"passes": 0}, {}),
    "rolda, small tasks": ("rolda", {"enough": 100}, {}),
    "prototypes": ("prototypes", {}, {}),
    "ran_pac": ("ran_pac", {"width": 48, "tuning": "none"}, {}),
    "rolda by ridge": ("rolda", {"passes": 0}, {"readout": "ridge", "drift": "affine"}),
    "prototypes by discriminant": ("prototypes", {}, {"readout": "discriminant", "layers": 2}),
}
ADAPTED: dict[str, tuple[str, dict, dict]] = {
    "rolda, adapted": ("rolda", {"rank": 2, "enough": 1}, {}),
    "aper": ("aper", {"rank": 2}, {}),
    "ran_pac, adapted": ("ran_pac", {"width": 48, "rank": 2}, {}),
    "ran_pac by discriminant": ("ran_pac", {"width": 48, "rank": 2}, {"readout": "discriminant", "layers": 2}),
    "aper by means": ("aper", {"rank": 2}, {"readout": "prototypes", "layers": 2, "drift": "affine"}),
}

Images = Mapping[str, slice]
"""Which images of which classes."""


class Some:
    """Images of some classes; in order they come class by class and one by one, so that no feature depends on the
    others."""

    def __init__(self, stream: Stream, images: Images, numbers: Mapping[str, int]) -> None:
        (everything,) = stream.train_all().batches(1000, device=torch.device("cpu"))
        inputs, labels = [], []
        for name, which in images.items():
            place = [each for task in stream.tasks for each in task.class_names].index(name)
            own = everything.inputs[everything.labels == place][which]
            inputs.append(own)
            labels.append(torch.full((len(own),), numbers[name]))
        self.inputs, self.labels = torch.cat(inputs), torch.cat(labels)

    def number_of_batches(self, batch_size: int) -> int:
        return -(-len(self.labels) // batch_size)

    def batches(self, batch_size: int, *, device, augment="none", draws=None, first=0):
        order = torch.arange(len(self.labels))
        if draws is not None:
            order = torch.randperm(len(order), generator=draws.generator("order"))
        for part in order.split(1 if draws is None else batch_size)[first:]:
            yield Batch(self.inputs[part], self.labels[part])


@pytest.fixture
def stream(six_classes) -> Stream:
    return Stream(six_classes, tasks=3, reader=ImageReader(32))


ALL, HALF, REST = slice(None), slice(6), slice(6, None)
A, B, C, D, E, F = "red", "green", "blue", "yellow", "magenta", "cyan"


def build(name: str, encoder: Encoder) -> Method:
    method, options, read = (PLAIN | ADAPTED)[name]
    built = build_method(find_method(method).Config(name=method, **options), encoder, **read)
    inner: Any = getattr(built, "learner", built)
    if random_features := getattr(inner, "random_features", None):  # one by one, too
        inner.random_features = lambda rows: torch.cat([random_features(row[None]) for row in rows])
    return built


def learn(method: Method, stream: Stream, *arrivals: Images, seed: int = 0, **told: bool) -> list[dict]:
    parts = []
    for images in arrivals:
        numbers = {
            name: number for task in method.tasks for number, name in zip(task.classes, task.class_names, strict=True)
        }
        new = {name: len(numbers) + place for place, name in enumerate(name for name in images if name not in numbers)}
        mine = dict(sorted(((name, (numbers | new)[name]) for name in images), key=lambda pair: pair[1]))
        task = Task(len(method.tasks), tuple(mine.values()), tuple(new.values()), tuple(mine))
        learn_task(method, task, Some(stream, images, mine), FIT, seed=seed, accelerator=Accelerator(cpu=True), **told)
        parts.append(method.taken_parts())
    return parts


def require_same(found: Method, expected: Method, x: torch.Tensor) -> None:
    """Sums to 1e-9, predictions to 1e-4; with the ridge that there is, which is drawn in one order or another."""
    assert found.tasks == expected.tasks
    compared = 0
    for place, module in expected.named_modules():
        match module, found.get_submodule(place):
            case Discriminant() as other, Discriminant() as one:
                assert one.counts.tolist() == other.counts.tolist()
                assert one.freedom.tolist() == other.freedom.tolist()
                assert one.centred.tolist() == other.centred.tolist()
                sums = unpacked(one.scatter, one.width), unpacked(other.scatter, other.width)
                means = one.means, other.means
            case RidgeHead() as other, RidgeHead() as one:
                other.solve(one.ridge.item())
                sums, means = (one.gram, other.gram), (one.targets, other.targets)
            case ClassMeans() as other, ClassMeans() as one:
                assert one.counts.tolist() == other.counts.tolist()
                torch.testing.assert_close(one.prototypes, other.prototypes)
                compared += 1
                continue
            case _:
                continue
        for one, other in (sums, means):
            assert (one - other).norm() <= 1e-9 * other.norm(), place
        compared += 1
    assert compared == len(expected.summed())
    logits, wanted = found.predict(x), expected.predict(x)
    if any(isinstance(module, Discriminant) for module in expected.modules()):  # up to what is the same for all classes
        logits, wanted = (each - each.mean(dim=1, keepdim=True) for each in (logits, wanted))
    assert (logits - wanted).abs().max() <= 1e-4 * wanted.abs().max()


def places_of(here: Method, there: Method) -> list[int]:
    """Of the other's classes, whose names may be here."""
    own, its = ([name for task in each.tasks for name in task.new_names] for each in (here, there))
    together = [*own, *(name for name in its if name not in own)]
    return [together.index(name) for name in its]


def state(method: Method) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in method.state_dict().items()}


def unchanged(method: Method, before: Mapping[str, torch.Tensor], tasks: Sequence[Task]) -> bool:
    now = method.state_dict()
    same = now.keys() == before.keys() and all(torch.equal(value, before[name]) for name, value in now.items())
    return same and method.tasks == list(tasks)


@pytest.mark.parametrize("name", PLAIN)
def test_models_made_apart_are_one_that_learned_everything(name, tiny_encoder: MAKE, stream) -> None:
    ours, theirs = [{A: ALL, B: ALL}, {C: ALL}], [{D: HALF, E: ALL}, {F: ALL, D: REST}]
    one, other, whole = (build(name, tiny_encoder()) for _ in range(3))
    learn(one, stream, *ours)
    learn(other, stream, *theirs)
    learn(whole, stream, *ours, *theirs)
    before, tasks = state(other), list(other.tasks)
    one.join(other)
    assert unchanged(other, before, tasks)
    x = torch.rand(20, 3, 32, 32)
    require_same(one, whole, x)
    for each in (one, whole):  # it goes on
        learn(each, stream, {A: HALF, F: HALF})
    require_same(one, whole, x)


@pytest.mark.parametrize("name", PLAIN)
def test_classes_that_both_have_add_up(name, tiny_encoder: MAKE, stream) -> None:
    ours, theirs = [{A: HALF, B: ALL}], [{C: ALL, A: REST}, {D: HALF}, {D: REST}]
    one, other, whole = (build(name, tiny_encoder()) for _ in range(3))
    learn(one, stream, *ours)
    learn(other, stream, *theirs)
    learn(whole, stream, *ours, *theirs)
    before, tasks = state(one), list(one.tasks)
    with pytest.raises(LoricaError, match="both models have learned red; join classes that are different"):
        one.join(other)
    assert unchanged(one, before, tasks)
    one.join(other, None, places_of(one, other))
    require_same(one, whole, torch.rand(20, 3, 32, 32))


@pytest.mark.parametrize("name", PLAIN | ADAPTED)
def test_models_that_went_on_from_one_are_one_that_learned_everything(name, tiny_encoder: MAKE, stream) -> None:
    """The other one has more of a common class, and both have the same new one."""
    first, ours, theirs = [{A: HALF, B: ALL}], [{C: ALL, D: HALF}], [{E: ALL, D: REST}, {A: REST, F: ALL}]
    common, one, other, whole = (build(name, tiny_encoder()) for _ in range(4))
    for method, arrivals in ((common, []), (one, ours), (other, theirs), (whole, [*ours, *theirs])):
        learn(method, stream, *first, *arrivals)
    one.join(other, common, places_of(one, other))
    require_same(one, whole, torch.rand(20, 3, 32, 32))


@pytest.mark.parametrize("name", ADAPTED)
def test_trunks_that_were_trained_apart_are_not_joined(name, tiny_encoder: MAKE, stream) -> None:
    one, other = build(name, tiny_encoder()), build(name, tiny_encoder())
    learn(one, stream, {A: ALL, B: ALL})
    learn(other, stream, {C: ALL, D: ALL})
    before, tasks = state(one), list(one.tasks)
    with pytest.raises(LoricaError, match="the other model has a trunk of its own, trained on other images"):
        one.join(other)
    assert unchanged(one, before, tasks)


def test_random_features_of_another_seed_are_not_joined(tiny_encoder: MAKE, stream) -> None:
    one, other = build("ran_pac", tiny_encoder()), build("ran_pac", tiny_encoder())
    learn(one, stream, {A: ALL, B: ALL})
    learn(other, stream, {C: ALL, D: ALL}, seed=1)
    before, tasks = state(one), list(one.tasks)
    with pytest.raises(LoricaError, match="or random features drawn from another seed; its statistics mean something"):
        one.join(other)
    assert unchanged(one, before, tasks)


def test_what_cannot_be_joined_without_a_common_model(tiny_encoder: MAKE, stream) -> None:
    one, empty, read, turned = (build(name, tiny_encoder()) for name in ("rolda", "rolda", "rolda by ridge", "rolda"))
    strange = build("rolda", tiny_encoder(1))
    turned.encoder.mean.zero_()
    for method in (one, read, turned, strange):
        learn(method, stream, {A: ALL, B: ALL} if method is one else {C: ALL, D: ALL})
    before, tasks = state(one), list(one.tasks)
    for other, why in (
        (empty, "the other model has learned nothing; name one that has"),
        (read, "expected another model of rolda, not read otherwise"),
        (build("prototypes", tiny_encoder()), "expected another model of rolda"),
        (strange, "the other model has another backbone; .* than those of this one"),
        (turned, "the other model has another normalisation"),
    ):
        with pytest.raises(LoricaError, match=why):
            one.join(other)
        assert unchanged(one, before, tasks)
    other = build("rolda", tiny_encoder())
    learn(other, stream, {C: ALL})
    other.get_submodule("discriminant").means.zero_()
    with pytest.raises(LoricaError, match="the sums of a model are not there"):
        one.join(other)


def test_an_aligned_head_is_not_joined(tiny_encoder: MAKE, stream) -> None:
    config = find_method("prototypes").Config(name="prototypes")
    one, other = (build_method(config, tiny_encoder(), readout="aligned") for _ in range(2))
    learn(one, stream, {A: ALL, B: ALL})
    learn(other, stream, {C: ALL, D: ALL})
    before, tasks = state(one), list(one.tasks)
    with pytest.raises(LoricaError, match="an aligned head is trained on draws after every task"):
        one.join(other)
    assert unchanged(one, before, tasks)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("name", PLAIN)
def test_what_was_taken_up_can_be_forgotten(name, frozen, tiny_encoder: MAKE, stream) -> None:
    """A class that one of them has, and one that both have, which the other one learned frozen or not."""
    ours, theirs = [{A: HALF, B: ALL}], [{C: ALL, D: ALL}, {A: slice(6, 9)}, {A: slice(9, None)}]
    one, other, without = (build(name, tiny_encoder()) for _ in range(3))
    parts = learn(one, stream, *ours, notes_parts=True)
    its = [*learn(other, stream, theirs[0], notes_parts=True)]
    its += learn(other, stream, theirs[1], notes_parts=True, frozen=frozen)
    its += learn(other, stream, theirs[2], notes_parts=True)
    places, taken = places_of(one, other), {}
    one.join(other, None, places)
    for place in one.summed():
        taken |= taken_up(Parts(its), place, places, range(2))
    parts = Parts([*parts, *additions_in(taken)])
    assert list(one.cannot_forget(range(4), parts)) == []
    one.forget([0, 2], parts)
    learn(without, stream, {B: ALL}, {D: ALL})
    x = torch.rand(20, 3, 32, 32)
    for place, module in without.named_modules():
        if isinstance(module, RidgeHead):
            module.solve(one.get_submodule(place).ridge.item())
        if isinstance(module, Discriminant):
            found, expected = (unpacked(each.scatter, each.width) for each in (one.get_submodule(place), module))
            assert (found - expected).norm() <= 1e-9 * expected.norm()
    logits, wanted = one.predict(x)[:, [1, 3]], without.predict(x)
    if any(isinstance(module, Discriminant) for module in without.modules()):
        logits, wanted = (each - each.mean(dim=1, keepdim=True) for each in (logits, wanted))
    assert (logits - wanted).abs().max() <= 1e-4 * wanted.abs().max()

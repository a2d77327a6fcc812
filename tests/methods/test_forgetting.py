"""What a method has forgotten it has never seen: against a method that learned the other classes alone, on the same
trunk."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from accelerate import Accelerator

from lorica.backbones.encoder import Encoder
from lorica.checkpoint import Checkpoints
from lorica.data.images import ImageReader
from lorica.data.stream import Stream
from lorica.errors import LoricaError
from lorica.linalg import unpacked
from lorica.methods import Method, build_method, find_method
from lorica.methods.rolda import RoLDA
from lorica.parts import Parts
from lorica.results import Entry
from lorica.statistics import Discriminant, RidgeHead
from lorica.training import Fit, learn_task
from lorica.types import Batch, Task

FIT = Fit(1, 8, "adam", 0.002, 0.9, 0.0, "constant", "none")
NAMES = ("a", "b", "c", "d", "e", "f")
TASKS = ((0, 1), (2, 3), (4, 5))

BUILT: dict[str, tuple[str, dict, dict]] = {
    "rolda, nothing trained": ("rolda", {"passes": 0}, {}),
    "rolda": ("rolda", {"rank": 2, "enough": 1}, {}),
    "ran_pac, nothing trained": ("ran_pac", {"width": 48, "tuning": "none"}, {}),
    "ran_pac": ("ran_pac", {"width": 48, "rank": 2}, {}),
    "prototypes": ("prototypes", {}, {}),
    "aper": ("aper", {"rank": 2}, {}),
    "rolda read by ridge": ("rolda", {"rank": 2, "enough": 1}, {"readout": "ridge"}),
    "ran_pac read by a discriminant": ("ran_pac", {"width": 48, "rank": 2}, {"readout": "discriminant", "layers": 2}),
    "aper read by class means": ("aper", {"rank": 2}, {"readout": "prototypes", "layers": 2, "drift": "affine"}),
    "prototypes read by a discriminant": ("prototypes", {}, {"readout": "discriminant", "drift": "affine"}),
    "prototypes read by ridge": ("prototypes", {}, {"readout": "ridge"}),
}


class Classes:
    """Images of some classes under new numbers; in order they come class by class, so that features do not depend on
    the others."""

    def __init__(self, stream: Stream, numbers: dict[int, int]) -> None:
        (everything,) = stream.train_all().batches(1000, device=torch.device("cpu"))
        own = [torch.nonzero(everything.labels == label).flatten() for label in numbers]
        self.inputs = torch.cat([everything.inputs[each] for each in own])
        self.labels = torch.cat([torch.full_like(each, new) for each, new in zip(own, numbers.values(), strict=True)])

    def number_of_batches(self, batch_size: int) -> int:
        return -(-len(self.labels) // batch_size)

    def batches(self, batch_size: int, *, device, augment="none", draws=None, first=0):
        if draws is None:
            for label in self.labels.unique():
                yield Batch(self.inputs[self.labels == label], self.labels[self.labels == label])
            return
        order = torch.randperm(len(self.labels), generator=draws.generator("order"))
        for part in order.split(batch_size)[first:]:
            yield Batch(self.inputs[part], self.labels[part])


def build(name: str, encoder: Encoder) -> Method:
    method, options, read = BUILT[name]
    built = build_method(find_method(method).Config(name=method, **options), encoder, **read)
    random_features = getattr(built, "random_features", None)
    if random_features:  # row by row, so that they do not depend on the others either
        built.random_features = lambda rows: torch.cat([random_features(row[None]) for row in rows])
    return built


def learn(method: Method, stream: Stream, without: tuple[int, ...] = (), **told: bool) -> list[dict[str, torch.Tensor]]:
    number, parts = 0, []
    for index, classes in enumerate(TASKS):
        kept = [label for label in classes if label not in without]
        names = tuple(NAMES[label] for label in kept)
        data = Classes(stream, {label: number + place for place, label in enumerate(kept)})
        task = Task.of_new_classes(index, number, names)
        learn_task(method, task, data, FIT, seed=0, accelerator=Accelerator(cpu=True), **told)
        parts.append(method.taken_parts())
        number += len(kept)
    return parts


@pytest.fixture
def stream(six_classes) -> Stream:
    return Stream(six_classes, tasks=3, reader=ImageReader(32))


@pytest.mark.parametrize("name", BUILT)
def test_what_is_forgotten_was_never_seen(name, tiny_encoder: Callable[..., Encoder], stream) -> None:
    """One class of a later task, that is after the trunk has come to rest; the ridge is the one that there is."""
    method, expected = build(name, tiny_encoder()), build(name, tiny_encoder())
    parts = learn(method, stream, notes_parts=True)
    learn(expected, stream, without=(2,))
    assert list(method.traces_of([2])) == []
    method.forget([2], Parts(parts))
    for place, module in expected.named_modules():
        if isinstance(module, RidgeHead):
            module.solve(method.get_submodule(place).ridge.item())
    kept, compared = [0, 1, 3, 4, 5], 0
    for place, module in expected.named_modules():
        match module, method.get_submodule(place):
            case Discriminant() as other, Discriminant() as one:
                assert torch.equal(one.means[kept], other.means)
                sums = unpacked(one.scatter, one.width), unpacked(other.scatter, other.width)
            case RidgeHead() as other, RidgeHead() as one:
                assert torch.equal(one.targets[:, kept], other.targets)
                assert not one.targets[:, 2].any()
                sums = one.gram, other.gram
            case _:
                continue
        assert (sums[0] - sums[1]).norm() <= 1e-9 * sums[1].norm(), place
        compared += 1
    assert compared == sum(kind in name for kind in ("rolda", "ran_pac", "discriminant", "ridge"))
    x = Classes(stream, {label: label for label in range(6)}).inputs
    logits, wanted = method.predict(x), expected.predict(x)
    torch.testing.assert_close(logits[:, kept], wanted, rtol=1e-4, atol=1e-4)
    if name in ("prototypes", "aper"):
        assert torch.equal(method.means.prototypes[kept], expected.means.prototypes)


def test_what_the_trunk_has_seen_is_said(tiny_encoder, stream) -> None:
    method = build("rolda", tiny_encoder())
    parts = learn(method, stream, notes_parts=True)
    (trace,) = method.traces_of([0, 1, 4])
    assert trace.startswith("the trunk was trained on images of a, b in task 1, and stays as it is; only going back")
    method.forget([0], Parts(parts))
    assert method.discriminant.counts.tolist() == [0, 12, 12, 12, 12, 12]


def test_the_ridge_of_the_latest_task_is_said(tiny_encoder, stream) -> None:
    method = build("ran_pac, nothing trained", tiny_encoder())
    learn(method, stream)
    assert list(method.traces_of([0, 2])) == []
    (trace,) = method.traces_of([2, 5])
    assert "may have been chosen on samples of f, too" in trace


def test_a_class_from_before_the_trunk_was_trained_goes_with_what_moved_it(tiny_encoder, stream) -> None:
    """A small first task is not adapted to; its statistics are moved by the second one's map, and its parts are."""
    found = []
    for gone in ((), (0,)):
        method = RoLDA(find_method("rolda").Config(name="rolda", rank=2, enough=20), tiny_encoder())
        parts, number = [], 0
        for index, classes in enumerate(((0,), (2, 3), (1, 4, 5))):
            names = tuple(NAMES[label] for label in classes)
            task, data = (
                Task.of_new_classes(index, number, names),
                Classes(stream, {label: number + place for place, label in enumerate(classes)}),
            )
            learn_task(method, task, data, FIT, seed=0, accelerator=Accelerator(cpu=True), notes_parts=True)
            parts.append(method.taken_parts())
            number += len(classes)
        assert method.adapted == [1]
        assert "discriminant.moved.weight" in parts[1]
        assert list(method.traces_of([0])) == []
        if gone:
            method.forget(gone, Parts(parts))
        found.append(method)
    whole, without = found
    removed = unpacked(whole.discriminant.scatter, whole.discriminant.width) - unpacked(
        without.discriminant.scatter, whole.discriminant.width
    )
    # of the class's own images, in features as they were before the second task, and moved
    before = tiny_encoder().layered_features(Classes(stream, {0: 0}).inputs, 2).double()
    weight = parts[1]["discriminant.moved.weight"]
    centred = (before - before.mean(dim=0)) @ weight.T
    assert (removed - centred.T @ centred).norm() <= 1e-6 * removed.norm()


@pytest.mark.parametrize(
    "name", ["rolda", "prototypes read by a discriminant", "prototypes read by ridge", "aper read by class means"]
)
def test_a_readout_and_its_method_keep_the_bits_of_old_logits(name, tiny_encoder, stream) -> None:
    method = build(name, tiny_encoder())
    for index, classes in enumerate(TASKS):
        task = Task.of_new_classes(index, classes[0], tuple(NAMES[label] for label in classes))
        data = Classes(stream, {label: label for label in classes})
        old = [method.predict(data.inputs[:size]) for size in (1, 5, 24)] if index else []
        learn_task(method, task, data, FIT, seed=0, accelerator=Accelerator(cpu=True), frozen=index > 0)
        for size, before in zip((1, 5, 24), old, strict=False):
            assert torch.equal(method.predict(data.inputs[:size])[:, : classes[0]], before)


@pytest.mark.parametrize(
    ("method", "options", "why"),
    [
        ("sd_lora", {"readout": "discriminant"}, "sd_lora goes on training its features"),
        ("prototypes", {"readout": "aligned"}, "an aligned head is trained anew after every task"),
    ],
)
def test_a_read_out_that_cannot_be_frozen_says_so(method, options, why, tiny_encoder, stream) -> None:
    built = build_method(find_method(method).Config(name=method), tiny_encoder(), **options)
    assert any(why in each for each in built.cannot_freeze(Task.of_new_classes(0, 0, ("a", "b"))))
    with pytest.raises(LoricaError, match="task 1 cannot be learned frozen"):
        learn(built, stream, frozen=True)


def test_a_checkpoint_of_an_earlier_version_still_loads(tiny_encoder, stream, tmp_path, monkeypatch) -> None:
    """Which has neither degrees of freedom nor what the centre is of; and it can be learned on, frozen."""
    name, own_state = "rolda, nothing trained", RoLDA.own_state
    later = {"discriminant.freedom", "discriminant.centred"}
    method, loaded = build(name, tiny_encoder()), build(name, tiny_encoder())
    tasks = [Task.of_new_classes(place, 2 * place, NAMES[2 * place : 2 * place + 2]) for place in range(2)]
    data = [Classes(stream, {label: label for label in task.classes}) for task in tasks]
    learn_task(method, tasks[0], data[0], FIT, seed=0, accelerator=Accelerator(cpu=True))
    monkeypatch.setattr(
        RoLDA, "own_state", lambda self: {key: value for key, value in own_state(self).items() if key not in later}
    )
    Checkpoints(tmp_path).save(method, Entry(rows=[[1.0]], diagnostics={}, train_seconds=0.0, cost={}))
    monkeypatch.undo()
    assert later < method.own_state().keys()
    Checkpoints(tmp_path).load(loaded, to_learn=True)
    for each in (method, loaded):
        learn_task(each, tasks[1], data[1], FIT, seed=0, accelerator=Accelerator(cpu=True), frozen=True)
    state = method.own_state()
    assert all(torch.equal(value, state[key]) for key, value in loaded.own_state().items())
    assert loaded.discriminant.freedom.tolist() == [11, 11, 0, 0]
    assert loaded.discriminant.centred.tolist() == [True, True, False, False]

"""RoLDA: the loss and the features by hand, the discriminant against scikit-learn's, and what a first task leaves to
later ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from lorica.adapters.attach import merged
from lorica.data.images import ImageReader
from lorica.data.stream import Stream
from lorica.descent import Descent
from lorica.errors import BackboneError, LoricaError
from lorica.methods.base import Data, MethodConfig
from lorica.methods.prototypes import Prototypes
from lorica.methods.rolda import RoLDA, RoLDAConfig, random_projection, rotated
from lorica.statistics import affine_drift
from lorica.training import Fit, Watch, learn_task
from lorica.types import Batch, Task

CPU = torch.device("cpu")
FIT = Fit(2, 8, "adam", 2e-3, 0.9, 0.0, "cosine", "none")


def rolda(encoder, **options) -> RoLDA:
    given = options if options.get("passes") == 0 else {"rank": 2, "enough": 1, **options}
    return RoLDA(RoLDAConfig(name="rolda", **given), encoder)


def require_taken_up_again(method: RoLDA, copied: RoLDA) -> None:
    """What a checkpoint keeps of a method makes one that has learned nothing predict the same."""
    for task in method.tasks:
        copied.grow(task)
    copied.restore_structure(method.structure())
    copied.load_own_state(method.own_state())
    x = torch.rand(3, 3, 32, 32)
    assert torch.equal(copied.predict(x), method.predict(x))
    assert copied.structure() == method.structure()


def learn(method: RoLDA, stream: Stream, tasks: int | None = None) -> RoLDA:
    for task in stream.tasks[:tasks]:
        learn_task(method, task, stream.train(task), FIT, seed=0, accelerator=Accelerator(cpu=True))
    return method


@pytest.fixture
def stream(six_classes) -> Stream:
    return Stream(six_classes, tasks=3, reader=ImageReader(32))


def images_of(data) -> Batch:
    return next(data.batches(1000, device=CPU))


# --- the first task -------------------------------------------------------------------------------------------------


def test_each_image_is_turned_by_its_own_number_of_quarters() -> None:
    images, turns = torch.rand(6, 3, 8, 8), torch.tensor([0, 1, 2, 3, 1, 0])
    found = rotated(images, turns)
    for image, own, number in zip(images, found, turns.tolist(), strict=True):
        np.testing.assert_array_equal(own, np.rot90(image.numpy(), number, axes=(1, 2)))


def test_the_loss_tells_the_rotations_of_each_class_apart(tiny_encoder) -> None:
    method = rolda(tiny_encoder())
    method.grow(Task.of_new_classes(0, 0, ("a", "b", "c")))
    method.restore_structure({"adapted": 0})
    batch = Batch(torch.rand(7, 3, 32, 32), torch.tensor([0, 2, 1, 1, 0, 2, 2]))
    assert method.head.shape == (12, 32)
    torch.testing.assert_close(method.head.norm(dim=1), torch.full((12,), 0.2))
    torch.manual_seed(5)
    (terms,) = method.losses(batch)
    torch.manual_seed(5)
    turns = torch.randint(4, (7,))
    assert len(turns.unique()) > 1
    turned = torch.stack([torch.rot90(x, int(r), dims=(1, 2)) for x, r in zip(batch.inputs, turns, strict=True)])
    with torch.no_grad():
        features, rows = (each.double().numpy() for each in (method.encoder.features(turned), method.head))
    cosine = (features / np.linalg.norm(features, axis=1, keepdims=True)) @ (
        rows / np.linalg.norm(rows, axis=1, keepdims=True)
    ).T
    logits = 16 * cosine
    labels = 4 * batch.labels.numpy() + turns.numpy()
    expected = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(7), labels]
    assert terms["cross_entropy"].item() == pytest.approx(expected.mean(), rel=1e-5)


def test_an_epoch_of_the_recipe_is_four_passes_over_the_first_task_and_nothing_later(tiny_encoder, stream) -> None:
    method, taken = rolda(tiny_encoder()), []

    def note(descent: Descent) -> None:
        taken.append((descent.draws.task, descent.steps))

    for task in stream.tasks:
        learn_task(
            method,
            task,
            stream.train(task),
            FIT,
            seed=0,
            accelerator=Accelerator(cpu=True),
            watch=Watch(after_step=note),
        )
    assert taken == [(0, 3)] * (FIT.epochs * 4 * 3)  # 24 images in batches of 8


def test_rotations_are_for_images(tiny_encoder, monkeypatch) -> None:
    encoder = tiny_encoder()
    monkeypatch.setattr(type(encoder), "modality", "texts")
    assert not rolda(encoder).rotations
    with pytest.raises(BackboneError, match=r"method\.rotations: tiny reads texts, which cannot be turned; use auto"):
        rolda(encoder, rotations="always")
    method = rolda(encoder)
    method.grow(Task.of_new_classes(0, 0, ("a", "b")))
    method.restore_structure({"adapted": 0})
    assert len(method.head) == 2


def test_without_passes_the_backbone_is_as_it_came(tiny_encoder, stream) -> None:
    method, x = learn(rolda(tiny_encoder(), passes=0), stream), torch.rand(3, 3, 32, 32)
    assert method.trainable() == []
    assert torch.equal(method.encoder.features(x), tiny_encoder().features(x))


# --- a small beginning ----------------------------------------------------------------------------------------------


@pytest.fixture
def growing(six_classes) -> Stream:
    """Tasks of 12, 24 and 36 images."""
    return Stream(six_classes, classes_per_task=[1, 2, 3], reader=ImageReader(32))


def test_the_first_task_with_enough_images_is_adapted_to(tiny_encoder, growing, caplog) -> None:
    method, x = rolda(tiny_encoder(), enough=20), torch.rand(3, 3, 32, 32)
    told = []
    for task in growing.tasks:
        learn_task(method, task, growing.train(task), FIT, seed=0, accelerator=Accelerator(cpu=True))
        told.append(method.diagnostics()["adapted_to_task"])
        if task.index == 0:
            assert torch.equal(method.encoder.features(x), tiny_encoder().features(x))
            assert "task 1 is not adapted to" in caplog.text
            assert "it has 12 samples, of method.enough=20" in caplog.text
        if task.index == 1:
            trunk = method.encoder.features(x)
            assert not torch.equal(trunk, tiny_encoder().features(x))
    assert told == [None, 2, 2]
    assert [record.getMessage() for record in caplog.records][1:] == ["rolda: task 2 is adapted to"]
    assert torch.equal(method.encoder.features(x), trunk)


def test_a_single_class_is_adapted_to_by_its_rotations_alone(tiny_encoder, growing, caplog) -> None:
    turned, plain = rolda(tiny_encoder()), rolda(tiny_encoder(), rotations="never")
    for method in (turned, plain):
        learn(method, growing, tasks=1)
    assert turned.structure() == {"adapted": 0}
    assert plain.structure() == {}
    assert "a single class has nothing to be told apart from without rotations" in caplog.text


def test_settings_of_an_adaptation_that_never_happens_are_refused() -> None:
    with pytest.raises(ValueError, match=r"rank, rotations: without effect where passes is 0"):
        RoLDAConfig(name="rolda", passes=0, rank=3, rotations="always")
    saved = RoLDAConfig(name="rolda", passes=0)  # with every key, as a run saves it
    assert RoLDAConfig.model_validate(saved.model_dump(mode="json")) == saved


@pytest.mark.parametrize("rotations", ["auto", "never"])
def test_what_was_kept_before_moves_with_the_features(tiny_encoder, growing, rotations) -> None:
    """The map is fitted on the images of the task that was adapted to, as that turned them, encoded without and with
    the update."""
    method, plain = rolda(tiny_encoder(), enough=20, rotations=rotations), rolda(tiny_encoder(), passes=0)
    learn(plain, growing, tasks=1)
    learn(method, growing, tasks=2)
    images = images_of(growing.train(growing.tasks[1])).inputs
    turned = torch.cat([torch.rot90(images, turn, (2, 3)) for turn in range(4 if rotations == "auto" else 1)])
    with torch.no_grad():
        weight, bias = affine_drift(plain.features(turned), method.features(turned))
    expected = plain.discriminant.means[0].numpy() @ weight.numpy().T + bias.numpy()
    np.testing.assert_allclose(method.discriminant.means[0], expected, atol=1e-8)
    assert not np.allclose(expected, plain.discriminant.means[0])
    assert method.discriminant.counts.tolist() == [12, 12, 12]


def test_a_late_beginning_is_taken_up_again(tiny_encoder, growing) -> None:
    method = learn(rolda(tiny_encoder(), enough=20), growing)
    assert method.structure() == {"adapted": 1}
    require_taken_up_again(method, rolda(tiny_encoder(), enough=20))


@pytest.mark.parametrize(
    "structure",
    [
        *({"adapted": adapted} for adapted in (3, -1, "1", None, True)),
        *({"adapted": 1, "also_adapted": later} for later in (2, [0], [1], [3], ["2"], None)),
    ],
)
def test_a_task_that_is_not_there_was_not_adapted_to(tiny_encoder, growing, structure) -> None:
    method = rolda(tiny_encoder())
    for task in growing.tasks:
        method.grow(task)
    with pytest.raises(ValueError, match=r"adapted is .*, expected different tasks from 0 to 2"):
        method.restore_structure(structure)


# --- adapting to every task -----------------------------------------------------------------------------------------


def test_of_the_kth_update_the_kth_part_is_kept(tiny_encoder, stream) -> None:
    method = rolda(tiny_encoder(), adapt="always")
    site = method.sites[0]
    total = torch.zeros(site.out_features, site.in_features)
    for number, task in enumerate(stream.tasks, 1):
        trained = []

        def note(descent: Descent, trained=trained) -> None:
            update = method.updates[site]
            trained[:] = [(update.up @ update.down).detach().clone()]

        data, watch = stream.train(task), Watch(after_step=note)
        learn_task(method, task, data, FIT, seed=0, accelerator=Accelerator(cpu=True), watch=watch)
        assert trained[0].any()
        total += trained[0] / number
        torch.testing.assert_close(method.increment(site), total, atol=1e-6, rtol=1e-4)
        assert method.diagnostics() == {"adapted_to_task": number}
    assert method.structure() == {"adapted": 0, "also_adapted": [1, 2]}


def test_statistics_of_earlier_classes_follow_every_task(tiny_encoder, stream) -> None:
    method = learn(rolda(tiny_encoder(), adapt="always"), stream, tasks=2)
    means = method.discriminant.means[:4].clone()
    rows, columns = torch.triu_indices(method.discriminant.width, method.discriminant.width)
    scatter = torch.zeros(method.discriminant.width, method.discriminant.width, dtype=torch.double)
    scatter[rows, columns] = scatter[columns, rows] = method.discriminant.scatter
    last = images_of(stream.train(stream.tasks[2]))
    images, labels = last.inputs, last.labels
    turned = torch.cat([torch.rot90(images, turn, (2, 3)) for turn in range(4)])
    with torch.no_grad():
        before = method.features(turned)
    third = stream.tasks[2]
    learn_task(method, third, stream.train(third), FIT, seed=0, accelerator=Accelerator(cpu=True))
    with torch.no_grad():
        weight, bias = affine_drift(before, method.features(turned))
        own = method.features(images).double()
    np.testing.assert_allclose(method.discriminant.means[:4], means @ weight.T + bias, atol=2e-4)
    expected = weight @ scatter @ weight.T
    for label in labels.unique():
        centred = own[labels == label] - own[labels == label].mean(dim=0)
        expected += centred.T @ centred
    np.testing.assert_allclose(
        method.discriminant.scatter, expected[rows, columns], atol=2e-4 * float(expected.abs().max())
    )


def test_a_stream_that_is_always_adapted_to_is_taken_up_again(tiny_encoder, stream) -> None:
    method = learn(rolda(tiny_encoder(), adapt="always"), stream)
    require_taken_up_again(method, rolda(tiny_encoder(), adapt="always"))


def test_small_tasks_on_the_way_are_read_as_they_are(tiny_encoder, six_classes, caplog) -> None:
    stream = Stream(six_classes, classes_per_task=[2, 1, 3], reader=ImageReader(32))
    method = learn(rolda(tiny_encoder(), adapt="always", enough=20), stream)
    assert method.adapted == [0, 2]
    assert [record.getMessage() for record in caplog.records] == [
        "rolda: task 2 is not adapted to, and read on features as they are: it has 12 samples, of method.enough=20; "
        "a later task will be, if it can"
    ]


def test_updates_take_no_more_room_once_they_are_as_wide_as_a_matrix(tiny_encoder) -> None:
    method = rolda(tiny_encoder(), adapt="always", rank=10)
    sizes = []
    for index in range(9):
        method.grow(Task.of_new_classes(index, index, (str(index),)))
        method._start(index)
        sizes.append(sum(tensor.numel() for name, tensor in method.own_state().items() if name.startswith("updates")))
    assert sizes[0] < sizes[2] < sizes[3]
    assert max(sizes[4:]) <= sizes[3] + 3 * (sizes[1] - sizes[0])


def test_models_that_went_on_adapting_are_not_joined(tiny_encoder, stream) -> None:
    common, one, other = (learn(rolda(tiny_encoder(), adapt="always"), stream, tasks=number) for number in (1, 2, 2))
    with pytest.raises(LoricaError, match=r"this model has a trunk of its own, trained on other images"):
        one.join(other, common)


# --- the core alone -------------------------------------------------------------------------------------------------


def test_the_first_task_is_that_of_adapting_once(tiny_encoder, stream) -> None:
    once, core = (learn(rolda(tiny_encoder(), adapt=way), stream, tasks=1) for way in ("first", "core"))
    x = torch.rand(3, 3, 32, 32)
    torch.testing.assert_close(core.predict(x), once.predict(x), atol=1e-4, rtol=1e-4)
    assert torch.equal(core.core, torch.eye(2).repeat(len(core.sites), 1, 1))


def test_factors_stay_and_the_matrix_between_them_is_learned(tiny_encoder, stream) -> None:
    method = learn(rolda(tiny_encoder(), adapt="core"), stream, tasks=1)
    factors = [factor.detach().clone() for factor in method.updates.factors()]
    for number, task in enumerate(stream.tasks[1:], 2):
        before = method.core.clone()
        learn_task(method, task, stream.train(task), FIT, seed=0, accelerator=Accelerator(cpu=True))
        assert (method.core != before).flatten(1).any(dim=1).all()  # in every projection
        assert all(map(torch.equal, method.updates.factors(), factors))
        assert method.diagnostics() == {"adapted_to_task": number}
        for place, site in enumerate(method.sites):
            update = method.updates[site]
            torch.testing.assert_close(method.increment(site), update.up @ method.core[place] @ update.down)
    state = method.own_state()
    assert state["core"].shape == (len(method.sites), 2, 2)
    assert "change" not in state


def test_statistics_follow_what_the_core_does_to_features(tiny_encoder, stream) -> None:
    method = learn(rolda(tiny_encoder(), adapt="core"), stream, tasks=2)
    means, third = method.discriminant.means[:4].clone(), stream.tasks[2]
    images = images_of(stream.train(third)).inputs
    turned = torch.cat([torch.rot90(images, turn, (2, 3)) for turn in range(4)])
    with torch.no_grad():
        before = method.features(turned)
    learn_task(method, third, stream.train(third), FIT, seed=0, accelerator=Accelerator(cpu=True))
    with torch.no_grad():
        weight, bias = affine_drift(before, method.features(turned))
    np.testing.assert_allclose(method.discriminant.means[:4], means @ weight.T + bias, atol=2e-4)


def test_the_core_of_what_was_adapted_to_late(tiny_encoder, six_classes) -> None:
    """A first task that is too small has no factors."""
    stream = Stream(six_classes, classes_per_task=[1, 2, 3], reader=ImageReader(32))
    method = learn(rolda(tiny_encoder(), adapt="core", enough=20), stream)
    assert method.adapted == [1, 2]
    require_taken_up_again(method, rolda(tiny_encoder(), adapt="core", enough=20))


# --- features and discriminant --------------------------------------------------------------------------------------


@pytest.mark.parametrize("layers", [1, 2, 5])
def test_features_are_the_parts_of_the_last_blocks_at_one_length(tiny_encoder, layers) -> None:
    encoder, left = tiny_encoder(), []
    method, vit, x = rolda(encoder, layers=layers), encoder.vit, torch.rand(3, 3, 32, 32)
    for block in vit.blocks:
        block.register_forward_hook(lambda module, inputs, tokens: left.append(tokens))
    found = method.features(x)
    parts = []
    for tokens in left[-layers:]:
        normed = vit.norm(tokens).detach().double().numpy()
        parts += [normed[:, 0], normed[:, 1:].mean(axis=1)]
    expected = [32**0.5 * part / np.linalg.norm(part, axis=1, keepdims=True) for part in parts]
    np.testing.assert_allclose(found.detach(), np.concatenate(expected, axis=1), atol=1e-5)
    assert method.discriminant.width == 2 * min(layers, 2) * 32


def test_features_beyond_the_width_are_projected_and_the_export_has_the_projection_in_it(tiny_encoder, stream) -> None:
    narrow, plain = (learn(rolda(tiny_encoder(), width=width), stream) for width in (48, 128))
    x, images = torch.rand(5, 3, 32, 32), images_of(stream.train_all())
    assert narrow.discriminant.scatter.shape == (48 * 49 // 2,)
    assert not any("projection" in name for name in narrow.own_state())
    assert plain.projection is None  # as wide as its features are
    encoder, classifier = merged(narrow.encoder), narrow.classifier()
    assert classifier.weight.shape == (6, 128)
    found, expected = encoder.with_classifier(classifier)(encoder.normalised(x)), narrow.predict(x)
    torch.testing.assert_close(found, expected, atol=1e-4 * expected.abs().max().item(), rtol=1e-4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert narrow.features(x).dtype == torch.float32
    assert random_projection(3, 2).flatten().tolist()[:2] == pytest.approx([1.764052 / 2**0.5, 0.400157 / 2**0.5])
    # lengths and angles are kept on average, so that it classifies much as without
    for each in (narrow, plain):
        assert (each.predict(images.inputs).argmax(dim=1) == images.labels).float().mean() > 0.9


def test_predictions_are_those_of_a_discriminant_on_all_images_at_once(tiny_encoder, stream) -> None:
    method = learn(rolda(tiny_encoder()), stream)
    whole, x = images_of(stream.train_all()), torch.rand(20, 3, 32, 32)
    with torch.no_grad():
        train, test = (method.features(each).double() for each in (whole.inputs, x))
    theirs = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.2).fit(train, whole.labels)
    expected = theirs.decision_function(test) * (len(train) - 6) / len(train)
    apart = method.predict(x).double().numpy() - expected
    tolerance = 1e-4 * np.abs(expected).max()
    np.testing.assert_allclose(apart - apart.mean(axis=1, keepdims=True), 0, atol=tolerance)


def test_after_the_first_task_order_and_division_change_nothing(tiny_encoder, stream) -> None:
    second, third = stream.tasks[1:]
    later = stream.train(second).followed_by([stream.train(third)])
    four = Task.of_new_classes(1, 2, (*second.class_names, *third.class_names))
    by_twos, at_once = learn(rolda(tiny_encoder()), stream), learn(rolda(tiny_encoder()), stream, tasks=1)
    learn_task(at_once, four, later, FIT, seed=0, accelerator=Accelerator(cpu=True))
    x = torch.rand(10, 3, 32, 32)
    torch.testing.assert_close(at_once.predict(x), by_twos.predict(x), atol=1e-3, rtol=1e-3)


def test_more_images_of_a_known_class_move_its_mean(tiny_encoder, stream) -> None:
    method = learn(rolda(tiny_encoder()), stream)
    before = method.discriminant.means.clone()
    again = Task(3, stream.tasks[1].classes, (), stream.tasks[1].class_names)
    learn_task(method, again, stream.test(stream.tasks[1]), FIT, seed=0, accelerator=Accelerator(cpu=True))
    moved = (method.discriminant.means - before).abs().amax(dim=1) > 0
    assert moved.tolist() == [False, False, True, True, False, False]
    assert method.discriminant.counts.tolist() == [12, 12, 18, 18, 12, 12]


@dataclass
class Renumbered:
    """Data whose classes have other numbers."""

    data: Data
    step: int

    def number_of_batches(self, batch_size: int) -> int:
        return self.data.number_of_batches(batch_size)

    def batches(self, batch_size: int, **settings: Any) -> Iterator[Batch]:
        for batch in self.data.batches(batch_size, **settings):
            yield Batch(batch.inputs, batch.labels + self.step)


def test_two_models_that_went_on_from_one_are_joined_exactly(tiny_encoder, stream) -> None:
    """One learned the second task, the other the third and more images of the first: together as one that learned all
    of it."""
    first, second, third = stream.tasks
    common, one, other, whole = (learn(rolda(tiny_encoder()), stream, tasks=1) for _ in range(4))
    again = Task(2, first.classes, (), first.class_names)
    for method, arrivals in (
        (one, [(second, stream.train(second))]),
        (
            other,
            [
                (Task.of_new_classes(1, 2, third.class_names), Renumbered(stream.train(third), -2)),
                (again, stream.test(first)),
            ],
        ),
        (
            whole,
            [
                (second, stream.train(second)),
                (third, stream.train(third)),
                (replace(again, index=3), stream.test(first)),
            ],
        ),
    ):
        for task, data in arrivals:
            learn_task(method, task, data, FIT, seed=0, accelerator=Accelerator(cpu=True))
    one.join(other, common)
    x = torch.rand(10, 3, 32, 32)
    assert one.tasks == whole.tasks
    torch.testing.assert_close(one.discriminant.means, whole.discriminant.means)
    torch.testing.assert_close(one.predict(x), whole.predict(x), atol=1e-3, rtol=1e-3)


def test_what_both_models_have_seen_since_is_not_counted_twice(tiny_encoder, stream) -> None:
    """The common model is that after what both learned; one with other images of the same tasks is none either."""
    first = stream.tasks[0]
    again = Task(1, first.classes, (), first.class_names)
    common, one, other, larger = (learn(rolda(tiny_encoder(), passes=0), stream, tasks=1) for _ in range(4))
    for method in (one, other):
        learn_task(method, again, stream.test(first), FIT, seed=0, accelerator=Accelerator(cpu=True))
    with pytest.raises(LoricaError, match=r"both models went on with the same task 2, which would count twice"):
        one.join(other, common)
    larger.discriminant.counts += 1
    with pytest.raises(
        LoricaError, match=r"this model has not begun with the 1 tasks of the common one and its images"
    ):
        common.join(one, larger)


def test_another_normalisation_is_another_space(tiny_encoder, stream) -> None:
    common, one = (learn(rolda(tiny_encoder(), passes=0), stream, tasks=1) for _ in range(2))
    unit = tiny_encoder()
    unit.mean.zero_()
    with pytest.raises(LoricaError, match=r"the other model has another normalisation"):
        one.join(learn(rolda(unit, passes=0), stream, tasks=2), common)


def test_models_that_did_not_go_on_from_one_are_not_joined(tiny_encoder, stream) -> None:
    common, one, other = (learn(rolda(tiny_encoder()), stream, tasks=number) for number in (1, 2, 2))
    before = {name: value.clone() for name, value in one.state_dict().items()}
    with pytest.raises(LoricaError, match=r"both models have learned \w+, \w+ since the common one"):
        one.join(other, common)
    with pytest.raises(LoricaError, match=r"the other model has a trunk of its own, trained on other images"):
        one.join(learn(rolda(tiny_encoder(), passes=1), stream, tasks=2), common)
    with pytest.raises(LoricaError, match=r"the other model has not begun with the 2 tasks of the common one"):
        one.join(common, one)
    with pytest.raises(
        LoricaError,
        match=r"this model has another backbone; its statistics mean something else than those of the common",
    ):
        learn(rolda(tiny_encoder(1)), stream, tasks=2).join(other, common)
    with pytest.raises(LoricaError, match=r"expected two other models of rolda"):
        one.join(Prototypes(MethodConfig(name="prototypes"), tiny_encoder()), common)
    with pytest.raises(LoricaError, match=r"the common model has learned nothing"):
        one.join(other, rolda(tiny_encoder()))
    assert all(torch.equal(value, before[name]) for name, value in one.state_dict().items())


def test_what_predictions_do_not_need_is_kept_with_the_newest_checkpoint_alone(tiny_encoder, stream) -> None:
    method = learn(rolda(tiny_encoder()), stream, tasks=1)
    assert set(method.needed_to_learn_on()) < method.own_state().keys()
    assert "head" in dict(method.named_parameters())
    assert "head" not in method.own_state()
    method.grow(stream.tasks[1])
    assert "head" not in dict(method.named_parameters())

"""Features that stay are computed once, to the bit what they would be; those of a trunk that changed are computed
again."""

from __future__ import annotations

import copy
import gc
import io
import itertools
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn
from torchvision.transforms import v2

from lorica import unread
from lorica.adapters.attach import attach, merged
from lorica.adapters.tuning import Bottlenecks
from lorica.backbones import encoder as encoders
from lorica.backbones.timm_vit import TimmViT
from lorica.data.images import ImageReader
from lorica.data.sources import Source, arrays
from lorica.data.stream import Stream
from lorica.descent import Fit
from lorica.evaluation import accuracy_row
from lorica.methods import Method, Readout, find_method
from lorica.methods.linear_probe import LinearProbe
from lorica.randomness import Draws
from lorica.training import learn_task
from lorica.types import Batch
from lorica.unread import Memory, Pass, Samples, Unread, content

MakeEncoder = Callable[..., TimmViT]
CPU = torch.device("cpu")
FIT = Fit(2, 8, "sgd", 0.01, 0.9, 0.0, "constant", "none")

RESTING: dict[str, dict[str, Any]] = {
    "prototypes": {},
    "ran_pac": {"tuning": "none", "width": 20},
    "rolda": {"passes": 0},
    "linear_probe": {},
}


def stream_of(source: Source, cache_bytes: int = 2**24) -> Stream:
    return Stream(source, tasks=3, reader=ImageReader(32), cache_bytes=cache_bytes)


def made(name: str, encoder: TimmViT, **settings: Any) -> Method:
    found = find_method(name)
    return found(found.Config(name=name, **settings), encoder)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Every batch of images that an encoder makes tokens of, from random inputs for comparison on."""
    batches: list[Tensor] = []
    own = TimmViT.embed

    def embed(self: TimmViT, inputs: Tensor) -> Tensor:
        batches.append(inputs)
        return own(self, inputs)

    monkeypatch.setattr(TimmViT, "embed", embed)
    monkeypatch.setattr("lorica.evaluation.plain_form", lambda method: merged(method))
    return batches


def learned(method: Method, stream: Stream) -> list[list[float]]:
    """The accuracy matrix."""
    accelerator, rows = Accelerator(cpu=True), []
    for task in stream.tasks:
        learn_task(method, task, stream.train(task), FIT, seed=0, accelerator=accelerator)
        tested = stream.tasks[: task.index + 1]
        rows.append(accuracy_row(method, tested, lambda i: stream.test(stream.tasks[i]), accelerator=accelerator))
    return rows


@pytest.mark.parametrize("name", RESTING)
def test_every_image_goes_through_a_frozen_backbone_once(
    name: str, tiny_encoder: MakeEncoder, six_classes: Source, seen: list[Tensor]
) -> None:
    method, stream = made(name, tiny_encoder(), **RESTING[name]), stream_of(six_classes)
    seen.clear()
    learned(method, stream)
    assert sum(map(len, seen)) == 6 * 12 + 6 * 6


@pytest.mark.parametrize(
    ("name", "passes", "trunks", "settings"),
    [
        ("rolda", 4, 1, {"passes": 2, "enough": 1}),
        ("ran_pac", 2, 1, {"width": 20}),
        ("aper", 2, 2, {}),  # its features are those of the backbone as it was, too
        ("aper", 2, 2, {"tuning": "full"}),
    ],
)
def test_what_is_trained_on_the_first_task_is_computed_once_from_then_on(
    name: str,
    passes: int,
    trunks: int,
    settings: dict[str, Any],
    tiny_encoder: MakeEncoder,
    six_classes: Source,
    seen: list[Tensor],
) -> None:
    method, stream = made(name, tiny_encoder(), **settings), stream_of(six_classes)
    seen.clear()
    learned(method, stream)
    assert sum(map(len, seen)) == passes * 24 + trunks * (6 * 12 + 6 * 6)


def test_old_spaces_of_ease_are_not_computed_again(
    tiny_encoder: MakeEncoder, six_classes: Source, seen: list[Tensor]
) -> None:
    method, stream = made("ease", tiny_encoder()), stream_of(six_classes)
    seen.clear()
    learned(method, stream)
    trained, measured = 3 * 2 * 24, (1 + 2 + 3) * 24  # a task's images in its own space and in those of earlier tasks
    tested = 12 * (1 + (1 + 2) + (1 + 1 + 3))  # in the second task's test, images of the first enter its space alone
    assert sum(map(len, seen)) == trained + measured + tested


def test_the_query_of_prompts_is_computed_once(
    tiny_encoder: MakeEncoder, six_classes: Source, seen: list[Tensor]
) -> None:
    method, stream = made("l2p", tiny_encoder(), pool_size=4, selected=1, length=1), stream_of(six_classes)
    seen.clear()
    learned(method, stream)
    trained, tested = 3 * 2 * 24, 12 * (1 + 2 + 3)
    assert sum(map(len, seen)) == trained + tested + 6 * 12 + 6 * 6


def test_a_read_out_and_the_head_beside_it_share_features(
    tiny_encoder: MakeEncoder, six_classes: Source, seen: list[Tensor]
) -> None:
    stream, accelerator = stream_of(six_classes), Accelerator(cpu=True)
    method = Readout(made("linear_probe", tiny_encoder()), "prototypes")
    learn_task(method, stream.tasks[0], stream.train(stream.tasks[0]), FIT, seed=0, accelerator=accelerator)
    seen.clear()
    for each in (method, method.learner):
        accuracy_row(each, stream.tasks[:1], lambda i: stream.test(stream.tasks[i]), accelerator=accelerator)
    assert sum(map(len, seen)) == 12


@pytest.mark.parametrize("name", [*RESTING, "ease", "aper"])
@pytest.mark.parametrize("room", ["none", "little", "no disk"])
def test_results_are_to_the_bit_the_same_however_much_room_there_is(
    name: str, room: str, tiny_encoder: MakeEncoder, six_classes: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unread, "BLOCK", 5)
    settings = RESTING.get(name, {})
    expected_method = made(name, tiny_encoder(), **settings)
    expected = learned(expected_method, stream_of(six_classes))
    if room == "no disk":

        def full(buffering: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(unread.tempfile, "TemporaryFile", full)
    method = made(name, tiny_encoder(), **settings)
    assert learned(method, stream_of(six_classes, cache_bytes=6000 if room == "little" else 0)) == expected
    for (key, value), other in zip(method.state_dict().items(), expected_method.state_dict().values(), strict=True):
        assert torch.equal(value, other), key


def test_features_are_those_of_inputs_that_were_read(tiny_encoder: MakeEncoder, six_classes: Source) -> None:
    encoder, stream = tiny_encoder(), stream_of(six_classes)
    _ = encoder.fingerprint
    split = stream.train(stream.tasks[0])
    for draws in (None, Draws(0).at(epoch=0)):
        for layers in (None, 1, 2):
            pairs = zip(
                split.unread.batches(7, device=CPU, draws=draws), split.batches(7, device=CPU, draws=draws), strict=True
            )
            for unread_batch, batch in pairs:
                assert isinstance(unread_batch.inputs, Unread)
                assert torch.equal(unread_batch.labels, batch.labels)
                found = encoder.features(unread_batch.inputs, layers=layers)
                torch.testing.assert_close(found, encoder.features(batch.inputs, layers=layers))
                assert torch.equal(unread_batch.inputs.read(), batch.inputs)


# --- what a trunk is ---


@pytest.fixture
def counted() -> tuple[Samples, list[int]]:
    """Twelve images, and the number that was read each time."""
    images, reads = torch.rand(12, 3, 32, 32, generator=torch.Generator().manual_seed(0)), list[int]()

    def read(places: Tensor, device: torch.device) -> Tensor:
        reads.append(len(places))
        return images[places]

    return Samples(12, read, Memory()), reads


def features_of(encoder: TimmViT, samples: Samples, *, ordered: bool = True, through: Any = None) -> Tensor:
    """In a pass of their own."""
    inputs = Unread(samples, torch.arange(12), CPU, Pass(ordered=ordered))
    return through.features(encoder, inputs) if through else encoder.features(inputs)


def changed_weight(encoder: TimmViT) -> None:
    encoder.vit.blocks[0].mlp.fc1.weight.data.mul_(1.5)  # which autograd's version counters do not see


def changed_buffer(encoder: TimmViT) -> None:
    encoder.mean.add_(0.1)


@pytest.mark.parametrize("change", [changed_weight, changed_buffer])
def test_a_trunk_with_other_numbers_is_another_one(
    change: Callable[[TimmViT], None], tiny_encoder: MakeEncoder, counted: tuple[Samples, list[int]]
) -> None:
    encoder, (samples, reads) = tiny_encoder(), counted
    _ = encoder.fingerprint
    before = features_of(encoder, samples)
    assert torch.equal(features_of(encoder, samples), before)
    assert reads == [12]
    change(encoder)
    after = features_of(encoder, samples)
    assert reads == [12, 12]
    assert torch.equal(after, encoder.features(samples.read(torch.arange(12), CPU)))
    assert not torch.allclose(after, before)


def test_a_trunk_that_others_with_the_same_numbers_share(
    tiny_encoder: MakeEncoder, counted: tuple[Samples, list[int]]
) -> None:
    samples, reads = counted
    for _ in range(2):
        encoder = tiny_encoder()
        _ = encoder.fingerprint
        features_of(encoder, samples)
    assert reads == [12]


def attach_something(encoder: TimmViT) -> None:
    attach(encoder, encoder.select(("q",)), lambda site: torch.full((site.out_features, site.in_features), 0.01))


def hook(encoder: TimmViT) -> None:
    encoder.vit.norm.register_forward_hook(lambda module, given, output: output * 2)


def override_forward(encoder: TimmViT) -> None:
    own = encoder.vit.norm.forward
    encoder.vit.norm.forward = lambda x: own(x) * 2


def override_a_method(encoder: TimmViT) -> None:
    own = encoder.embed
    encoder.embed = lambda inputs: own(inputs) * 2  # pyright: ignore[reportAttributeAccessIssue]


def compute_a_weight(encoder: TimmViT) -> None:
    layer = cast(nn.Linear, encoder.vit.blocks[-1].mlp.fc1)
    weight = layer.weight.detach() * 2
    del layer._parameters["weight"]
    layer.weight = weight  # pyright: ignore[reportAttributeAccessIssue]  # as torch.nn.utils.weight_norm has them


class Wrapped(nn.Module):
    """A layer of somebody's own, with numbers that are in no tensor of it."""

    def __init__(self, own: nn.Module) -> None:
        super().__init__()
        self.own, self.factor = own, [2.0]

    def forward(self, x: Tensor) -> Tensor:
        return self.own(x) * self.factor[0]


def wrap(encoder: TimmViT) -> None:
    encoder.vit.norm = Wrapped(encoder.vit.norm)


@pytest.mark.parametrize(
    "change", [attach_something, hook, override_forward, override_a_method, compute_a_weight, wrap]
)
def test_nothing_is_kept_of_a_trunk_that_has_more_than_its_tensors(
    change: Callable[[TimmViT], None], tiny_encoder: MakeEncoder, counted: tuple[Samples, list[int]]
) -> None:
    encoder, (samples, reads) = tiny_encoder(), counted
    _ = encoder.fingerprint
    before = features_of(encoder, samples)
    change(encoder)
    for _ in range(2):
        found = features_of(encoder, samples)
        assert not torch.allclose(found, before)
        assert torch.equal(found, encoder.features(samples.read(torch.arange(12), CPU)))
    assert reads == [12] * 5
    assert samples.memory._held.keys() == {(samples, *rest) for _, *rest in samples.memory._held}
    assert len(samples.memory._held) == 1


def test_a_merged_trunk_is_known_by_its_numbers(tiny_encoder: MakeEncoder, counted: tuple[Samples, list[int]]) -> None:
    encoder, (samples, reads) = tiny_encoder(), counted
    _ = encoder.fingerprint
    share = [0.01]
    attach(encoder, encoder.select(("q",)), lambda site: torch.full((site.out_features, site.in_features), share[0]))
    with torch.inference_mode():
        first = features_of(merged(encoder), samples)
        assert torch.equal(features_of(merged(encoder), samples), first)
        assert reads == [12]
        share[0] = 0.5
        assert not torch.allclose(features_of(merged(encoder), samples), first)


def test_what_predicting_kept_can_be_trained_on(tiny_encoder: MakeEncoder, counted: tuple[Samples, list[int]]) -> None:
    encoder, (samples, _) = tiny_encoder(), counted
    _ = encoder.fingerprint
    with torch.inference_mode():
        features_of(encoder, samples)
    row = nn.Parameter(torch.ones(encoder.width))
    (features_of(encoder, samples) @ row).sum().backward()
    assert row.grad is not None
    assert row.grad.abs().sum() > 0


def test_a_trunk_that_trains_has_gradients(tiny_encoder: MakeEncoder, counted: tuple[Samples, list[int]]) -> None:
    encoder, (samples, _) = tiny_encoder(), counted
    _ = encoder.fingerprint
    features_of(encoder, samples)
    encoder.vit.norm.weight.requires_grad_(True)
    features_of(encoder, samples, ordered=False).sum().backward()
    assert encoder.vit.norm.weight.grad is not None


def test_a_copy_may_change_in_a_pass_that_trains(tiny_encoder: MakeEncoder, counted: tuple[Samples, list[int]]) -> None:
    encoder, (samples, _) = tiny_encoder(), counted
    _ = encoder.fingerprint
    teacher = copy.deepcopy(encoder)
    inputs = Unread(samples, torch.arange(12), CPU, Pass(ordered=False))
    before = teacher.features(inputs)
    teacher.vit.norm.weight.data.mul_(2)  # a moving average of its student, say
    assert not torch.allclose(teacher.features(inputs), before)


def test_what_drops_at_random_is_not_kept(tiny_encoder: MakeEncoder, counted: tuple[Samples, list[int]]) -> None:
    encoder, (samples, _) = tiny_encoder(), counted
    encoder.vit.blocks[0].mlp.drop1.p = 0.5
    _ = encoder.fingerprint
    encoder.train()
    assert not torch.equal(features_of(encoder, samples), features_of(encoder, samples))
    encoder.eval()
    assert torch.equal(features_of(encoder, samples), features_of(encoder, samples))


def test_modules_in_a_trunk_count_with_their_numbers_and_settings(
    tiny_encoder: MakeEncoder, counted: tuple[Samples, list[int]]
) -> None:
    encoder, (samples, reads) = tiny_encoder(), counted
    _ = encoder.fingerprint
    tuning = Bottlenecks(encoder, 4)
    with torch.no_grad():
        tuning.up.uniform_(-1, 1)
        found = [features_of(encoder, samples, through=tuning) for _ in range(2)]
        tuning.scale = 1.0
        found += [features_of(encoder, samples, through=tuning)]
        tuning.down_bias.add_(1)
        found += [features_of(encoder, samples, through=tuning), features_of(encoder, samples)]
        assert torch.equal(found[0], found[1])
        assert not any(torch.allclose(one, other) for one, other in itertools.combinations(found[1:], 2))
        other = tiny_encoder(1)
        _ = other.fingerprint
        inputs = Unread(samples, torch.arange(12), CPU, Pass(ordered=True))
        assert not torch.allclose(tuning.features(encoder, inputs), tuning.features(other, inputs))
    assert reads == [12] * 5  # the last two from inputs that one object had read


def test_precisions_are_kept_apart(tiny_encoder: MakeEncoder, counted: tuple[Samples, list[int]]) -> None:
    encoder, (samples, _) = tiny_encoder(), counted
    _ = encoder.fingerprint
    full = features_of(encoder, samples)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = features_of(encoder, samples)
        expected = encoder.features(samples.read(torch.arange(12), CPU))
    assert torch.equal(half, expected)
    assert not torch.equal(half.float(), full)
    assert torch.equal(features_of(encoder, samples), full)


# --- inputs ---


def test_unread_inputs_do_as_they_do_once_read() -> None:
    images = torch.rand(4, 3, 8, 8)
    samples = Samples(4, lambda places, device: images[places], Memory())

    def inputs() -> Any:
        return Unread(samples, torch.tensor([2, 0]), CPU, Pass(ordered=True))

    expected = images[[2, 0]]
    assert len(inputs()) == 2
    assert inputs().shape == expected.shape
    for found, wanted in (
        (inputs().flip(-1), expected.flip(-1)),
        (inputs()[1:].read(), expected[1:]),
        (inputs()[[1, 0]].read(), expected[[1, 0]]),
        (inputs()[1], expected[1]),
        (inputs()[:, 0], expected[:, 0]),
        (inputs().to("cpu"), expected),
        (torch.rot90(inputs(), 1, (2, 3)), torch.rot90(expected, 1, (2, 3))),
        (torch.cat([inputs(), images]), torch.cat([expected, images])),
        (F.interpolate(input=inputs(), size=4), F.interpolate(expected, size=4)),
        ((inputs() - 0.5) / 0.5, (expected - 0.5) / 0.5),
        (1 - inputs(), 1 - expected),
        (inputs() + inputs(), 2 * expected),
        (expected * inputs(), expected**2),
        (inputs() > 0.5, expected > 0.5),
        (-inputs(), -expected),
    ):
        assert torch.equal(found, wanted)
    with pytest.raises(AttributeError, match="nothing_such"):
        _ = inputs().nothing_such


@pytest.mark.parametrize("budget", [0, 2**20])
def test_blocks_are_found_whatever_is_asked_for(budget: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unread, "BLOCK", 4)
    values, asked = torch.arange(11.0)[:, None], list[list[int]]()

    def read(places: Tensor, device: torch.device) -> Tensor:
        asked.append(places.tolist())
        return values[places]

    samples = Samples(11, read, Memory(budget))
    for places in ([0, 1, 2, 3], [9, 2, 10, 8], [10, 4, 7, 0, 1, 9], [3], [8, 9, 10], list(range(11))):
        found = samples.features(torch.tensor(places), CPU, "double", lambda x: 2 * x)
        assert found.flatten().tolist() == [2 * place for place in places]
    assert asked == [[0, 1, 2, 3], [8, 9, 10], [4, 5, 6, 7]]
    samples.memory.forget(samples)
    samples.features(torch.tensor([0]), CPU, "double", lambda x: 2 * x)
    assert asked[3:] == [[0, 1, 2, 3]]


def test_the_file_is_used_again_and_goes_with_its_memory() -> None:
    memory, sizes = Memory(0), list[int]()
    for value in range(3):
        samples = Samples(600, lambda places, device, value=value: places[:, None] * value, memory)
        for _ in range(2):
            found = samples.features(torch.arange(600), CPU, "as they are", lambda x: x.bfloat16())
            assert torch.equal(found, (torch.arange(600)[:, None] * value).bfloat16())
        sizes.append(os.fstat(memory._file.fileno()).st_size)
        memory.forget(samples)
    assert sizes == [1200] * 3
    file = memory._file
    del memory, samples
    assert file.closed


def test_a_disk_that_fills_up_half_way_is_told_once_and_harms_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """A block of 512 bytes has room, half of the next one, and nothing after that; then reading fails, too."""

    class Disk(io.FileIO):
        room, broken = 768, False

        def write(self, data: Any) -> int:
            if not self.room:
                raise OSError(28, "No space left on device")
            taken = super().write(bytes(data)[: self.room])
            Disk.room -= taken
            return taken

        def read(self, size: int = -1) -> bytes:
            if self.broken:
                raise OSError(5, "Input/output error")
            return super().read(size)

    (tmp_path / "file").touch()
    monkeypatch.setattr(unread.tempfile, "TemporaryFile", lambda buffering: Disk(tmp_path / "file", "r+"))
    memory, asked = Memory(0), list[int]()

    def double(x: Tensor) -> Tensor:
        asked.append(len(x))
        return (2 * x[:, None]).bfloat16()

    samples = Samples(1000, lambda places, device: places, memory)
    for Disk.broken in (False, False, True):
        found = samples.features(torch.arange(1000), CPU, "double", double)
        assert torch.equal(found, (2 * torch.arange(1000)[:, None]).bfloat16())
    assert asked == [256, 256, 256, 232, 256, 256, 232, 256, 256, 256, 232]
    assert [record.message.count("set TMPDIR to a folder with room") for record in caplog.records] == [1]


def test_a_trunk_is_looked_at_once_in_a_test(
    tiny_encoder: MakeEncoder, six_classes: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    method, stream = made("prototypes", tiny_encoder()), stream_of(six_classes)
    learned(method, stream)
    looked = list[nn.Module]()
    own = encoders.content
    monkeypatch.setattr(encoders, "content", lambda module: looked.append(module) or own(module))
    accuracy_row(method, stream.tasks, lambda i: stream.test(stream.tasks[i]), accelerator=Accelerator(cpu=True))
    assert len(looked) == 1


def test_training_features_are_dropped_with_their_task(tiny_encoder: MakeEncoder, six_classes: Source) -> None:
    method, stream = made("prototypes", tiny_encoder()), stream_of(six_classes)
    learned(method, stream)
    kept = {id(key[0]) for key in stream._memory._held}
    assert kept == {id(samples) for task in stream.tasks for _, samples in stream.test(task).unread._parts}


def test_batches_that_are_computed_are_read_ahead(
    tiny_encoder: MakeEncoder, six_classes: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unread, "BLOCK", 6)
    encoder, stream = tiny_encoder(), stream_of(six_classes)
    _ = encoder.fingerprint
    split, readers = stream.train(stream.tasks[0]), list[str]()
    own = split._samples.read
    monkeypatch.setattr(
        split._samples, "read", lambda *given: readers.append(threading.current_thread().name) or own(*given)
    )
    for _ in range(2):
        for batch in split.unread.batches(6, device=CPU):
            encoder.features(batch.inputs)
            time.sleep(0.05)  # the thread is at the next batch
    first, *later = readers
    assert first == "MainThread"
    assert len(readers) == 4
    assert any(name.startswith("ahead") for name in later)


def test_images_are_not_decoded_where_their_features_are_known(
    tiny_encoder: MakeEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    random = np.random.RandomState(0)
    images = random.randint(0, 255, (12, 32, 32, 3), dtype=np.uint8)
    labels = np.repeat(np.arange(2), 6)
    source = arrays((images, labels), (images, labels), ("one", "other"))
    stream = Stream(source, tasks=2, reader=ImageReader(32), cache_bytes=0)
    decoded = list[int]()
    own = source.test.decode
    monkeypatch.setattr(source.test, "decode", lambda index, *least: decoded.append(index) or own(index, *least))
    method = made("prototypes", tiny_encoder())
    learned(method, stream)
    assert sorted(decoded) == list(range(12))


@pytest.mark.parametrize("size", [4, 256])
def test_who_writes_into_features_or_inputs_changes_no_others(
    size: int, tiny_encoder: MakeEncoder, six_classes: Source
) -> None:
    stream = Stream(six_classes, reader=ImageReader(32), tasks=1)
    split, encoder = stream.train(stream.tasks[0]), tiny_encoder()
    _ = encoder.fingerprint

    def over(batches: Iterator[Batch], of: Callable[[Any], Tensor]) -> Tensor:
        return torch.cat([of(batch.inputs).clone() for batch in batches])

    def darker(inputs: Any) -> Tensor:
        inputs[:2].mul_(0.5)
        inputs *= 0.5
        return encoder.features(inputs)

    plain, unread = (partial(each.batches, size, device=CPU) for each in (split, split.unread))
    expected = over(plain(), encoder.features)
    for guard in (torch.no_grad, torch.inference_mode):
        with guard():
            torch.testing.assert_close(over(unread(), darker), over(plain(), darker))
            over(unread(), lambda inputs: encoder.features(inputs).zero_())
            torch.testing.assert_close(over(unread(), encoder.features), expected)


def test_some_of_a_batch_have_the_same_bits_whether_it_was_made_ahead_or_not(
    tiny_encoder: MakeEncoder, six_classes: Source
) -> None:
    stream = Stream(six_classes, reader=ImageReader(32), tasks=1)
    encoder = tiny_encoder()
    _ = encoder.fingerprint
    batch: Any = next(iter(stream.train(stream.tasks[0]).unread.batches(8, device=CPU)))
    before = batch.inputs[3:5]
    batch.inputs.read()
    after = batch.inputs[3:5]
    assert isinstance(after, Unread)
    assert torch.equal(encoder.features(before), encoder.features(after))
    assert encoder.features(batch.inputs[:0]).shape == (0, encoder.width)


def test_operators_reach_the_inputs(six_classes: Source) -> None:
    stream = Stream(six_classes, reader=ImageReader(32), tasks=1)
    inputs: Any = next(iter(stream.train(stream.tasks[0]).unread.batches(3, device=CPU))).inputs
    read = inputs.read()
    assert torch.equal(inputs == read, torch.ones_like(read, dtype=torch.bool))
    assert torch.equal(inputs @ read, read @ read)
    assert torch.equal(2**inputs, 2**read)


def test_a_trunk_with_other_heads_is_another_one(tiny_encoder: MakeEncoder) -> None:
    encoder, other = tiny_encoder(), tiny_encoder()
    assert content(encoder) == content(other)
    cast(Any, other).vit.blocks[0].attn.num_heads = 4
    assert content(encoder) != content(other)


def test_a_split_goes_with_the_last_who_holds_it(tiny_encoder: MakeEncoder, six_classes: Source) -> None:
    split = Stream(six_classes, reader=ImageReader(32), tasks=1).train_all()
    known, encoder = weakref.ref(split), tiny_encoder()
    _ = encoder.fingerprint
    gc.disable()
    try:
        for batch in split.unread.batches(8, device=CPU):
            encoder.features(batch.inputs)
        split.unread.forget()
        del split
        assert known() is None
    finally:
        gc.enable()


class Turned(LinearProbe):
    """A probe that trains on turned images, by transforms that pass over whatever is no tensor."""

    name = "turned"
    turn = v2.RandomRotation((180, 180))
    given: ClassVar[list[type]] = []

    def losses(self, batch: Batch) -> Iterator[dict[str, Tensor]]:
        self.given.append(type(batch.inputs))
        yield from super().losses(replace(batch, inputs=self.turn(batch.inputs)))

    def predict(self, inputs: Any) -> Tensor:
        self.given.append(type(inputs))
        return super().predict(inputs)


class Unaware(Turned):
    """One that says that it takes unread inputs."""

    takes_unread = True


def test_a_method_of_ones_own_is_given_tensors_unless_it_says_otherwise(
    tiny_encoder: MakeEncoder, six_classes: Source
) -> None:
    for kind, expected in ((Turned, Tensor), (Unaware, Unread)):
        for read in (lambda method: method, lambda method: Readout(method, "discriminant")):
            Turned.given.clear()
            learned(read(kind(kind.Config(name="turned"), tiny_encoder())), stream_of(six_classes))
            assert set(Turned.given) == {expected}

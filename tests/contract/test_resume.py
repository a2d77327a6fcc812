"""A method that is stopped at any step of a task, and taken up by another process, ends as if it had never been
stopped."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from lorica import snapshot, unread
from lorica.data.images import ImageReader
from lorica.data.stream import Stream
from lorica.descent import Descent, Fit
from lorica.errors import CheckpointError
from lorica.files import RunFolder
from lorica.methods import Method, build_method, find_method
from lorica.session import Session

FIT = Fit(
    epochs=2,
    batch_size=8,
    optimizer="adam",
    learning_rate=0.01,
    momentum=0.9,
    weight_decay=0.01,
    schedule="cosine",
    augment="shift",
)
STEPS = 6  # two epochs of 24 images


class StoppedHere(Exception):
    """Stands for the end of a process."""


class Stopping(Session):
    """Writes a snapshot after every step, and ends after a number of them in one task."""

    stop: tuple[int, int] | None = None

    def _between_steps(self, descent: Descent) -> None:
        super()._between_steps(descent)
        if self.stop == (descent.draws.task, descent.taken) and descent.draws.stage == 0:
            raise StoppedHere


def session_in(folder: Path, method: Method, stop: tuple[int, int] | None = None, fit: Fit = FIT) -> Stopping:
    run = RunFolder(folder)
    folder.mkdir(exist_ok=True)
    fit = fit if method.encoder.modality == "images" else replace(fit, augment="none")
    made = Stopping(
        method, fit, seed=3, accelerator=Accelerator(cpu=True), folder=run, snapshot_seconds=1e-9 if stop else 1e9
    )
    made.stop = stop
    made.restore()
    return made


def learn(session: Session, stream: Stream) -> None:
    arrivals = [(task, stream.train(task)) for task in stream.tasks]
    for task, data in arrivals[session.learned :]:
        session.learn(task, data)
        session.close([[0.5] * (task.index + 1)])


def assert_same(one: Session, other: Session) -> None:
    left, right = one.method.own_state(), other.method.own_state()
    assert left.keys() == right.keys()
    assert [key for key in left if not torch.equal(left[key], right[key])] == []
    assert json.dumps(one.method.structure()) == json.dumps(other.method.structure())
    assert one.record.diagnostics == other.record.diagnostics
    assert one.record.costs == other.record.costs
    lines = [each.folder.history.read_bytes() if each.folder.history.exists() else b"" for each in (one, other)]
    assert lines[0] == lines[1]


def test_a_task_goes_on_from_any_step(kind, tiny_encoder, stream, tmp_path: Path) -> None:
    # within an epoch, between two, and at the end
    assert_it_goes_on(lambda: kind(tiny_encoder()), stream, tmp_path, (0, 2), (1, 3), (1, STEPS), (2, 5))


def assert_it_goes_on(build: Callable[[], Method], stream: Stream, tmp_path: Path, *stops: tuple[int, int]) -> None:
    """Stopped after any of these steps, each of a task, as if it had not been."""
    whole = session_in(tmp_path / "whole", build())
    learn(whole, stream)
    for task, step in stops:
        folder = tmp_path / f"{task}-{step}"
        try:
            learn(session_in(folder, build(), (task, step)), stream)
        except StoppedHere:
            assert RunFolder(folder).snapshot.exists()
        resumed = session_in(folder, build())
        learn(resumed, stream)
        assert_same(whole, resumed)
        assert sorted(path.name for path in folder.iterdir()) == sorted(
            path.name for path in whole.folder.path.iterdir()
        )


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("sd_lora", {"readout": "prototypes"}),
        ("sd_lora", {"readout": "discriminant", "layers": 2, "drift": "affine"}),
        ("dual_prompt", {"readout": "ridge", "drift": "affine"}),
        ("full_finetune", {"readout": "prototypes", "layers": 1, "drift": "affine"}),
        ("full_finetune", {"readout": "aligned", "drift": "affine"}),
    ],
)
def test_a_read_out_goes_on_too(name, options, small, tiny_encoder, stream, tmp_path: Path) -> None:
    """Also where a task that is taken up again must remember its images' features from before it."""

    def build() -> Method:
        return build_method(small(name), tiny_encoder(), **options)

    whole = session_in(tmp_path / "whole", build())
    learn(whole, stream)
    for task, step in ((1, 4), (2, STEPS)):
        folder = tmp_path / f"{task}"
        with suppress(StoppedHere):
            learn(session_in(folder, build(), (task, step)), stream)
        kept = snapshot.read(RunFolder(folder).snapshot)
        assert kept is not None
        held = {key: value.shape for key, value in kept.tensors.items()}
        assert ("method.before" in held) == ("drift" in options)
        assert held.get("method.before", (24,))[0] == 24
        resumed = session_in(folder, build())
        learn(resumed, stream)
        assert_same(whole, resumed)


@pytest.mark.parametrize("name", ["linear_probe", "l2p", "hide_prompt"])
def test_features_that_were_kept_are_computed_again(
    name: str, small, tiny_encoder, six_classes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In other batches than those of the step that goes on, to the same bits."""
    monkeypatch.setattr(unread, "BLOCK", 5)
    fit = replace(FIT, augment="none")

    def learned(folder: Path, stop: tuple[int, int] | None = None) -> Session:
        session = session_in(folder, build_method(small(name), tiny_encoder()), stop, fit)
        with suppress(StoppedHere):
            learn(session, Stream(six_classes, tasks=3, reader=ImageReader(32)))
        return session

    whole = learned(tmp_path / "whole")
    for stop in ((0, 2), (1, 4)):
        learned(tmp_path / "stopped", stop)
        assert_same(whole, learned(tmp_path / "stopped"))
        shutil.rmtree(tmp_path / "stopped")


def test_a_slow_trunk_goes_on_too(tiny_encoder, stream, tmp_path: Path) -> None:
    cls = find_method("full_finetune")

    def build(rate: float) -> Method:
        return cls(cls.Config(name="full_finetune", trunk_rate=rate), tiny_encoder())

    whole = session_in(tmp_path / "whole", build(0.01))
    learn(whole, stream)
    with pytest.raises(StoppedHere):
        learn(session_in(tmp_path / "stopped", build(0.01), (1, 4)), stream)
    for other in (0.5, 1.0):
        with pytest.raises(CheckpointError, match=r"method\.trunk_rate was 0\.01, now"):
            session_in(tmp_path / "stopped", build(other))
    resumed = session_in(tmp_path / "stopped", build(0.01))
    learn(resumed, stream)
    assert_same(whole, resumed)


def test_begin_task_is_not_called_again(tiny_encoder, stream, tmp_path: Path) -> None:
    cls: Any = find_method("inf_lora")
    calls: list[int] = []

    class Counting(cls):
        def begin_task(self, context) -> None:
            calls.append(context.task.index)
            super().begin_task(context)

    def build() -> Method:
        return Counting(cls.Config(name="inf_lora", rank=2), tiny_encoder())

    with pytest.raises(StoppedHere):
        learn(session_in(tmp_path / "stopped", build(), (1, 1)), stream)
    learn(session_in(tmp_path / "stopped", build()), stream)
    assert calls == [0, 1, 2]


@pytest.mark.parametrize(
    "damage", [lambda content: content[:-7], lambda content: b"", lambda content: content[:-1] + b"\x01"]
)
def test_a_damaged_snapshot_is_as_good_as_none(
    damage: Callable[[bytes], bytes], tiny_encoder, stream, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cls = find_method("sd_lora")

    def build() -> Method:
        return cls(cls.Config(name="sd_lora", rank=2), tiny_encoder())

    whole = session_in(tmp_path / "whole", build())
    learn(whole, stream)
    with pytest.raises(StoppedHere):
        learn(session_in(tmp_path / "stopped", build(), (1, 4)), stream)
    file = tmp_path / "stopped" / "snapshot.safetensors"
    file.write_bytes(damage(file.read_bytes()))
    resumed = session_in(tmp_path / "stopped", build())
    assert "truncated or altered; the task begins anew" in caplog.text
    assert not file.exists()
    learn(resumed, stream)
    assert_same(whole, resumed)

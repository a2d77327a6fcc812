"""Streams of domains and of classes that come back: every method learns classes that return, or says before it begins
that it cannot."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from sklearn.metrics import balanced_accuracy_score

from lorica.config import read_recipe
from lorica.data.images import ImageArrays, ImageReader
from lorica.data.sources import Source, arrays
from lorica.data.sources.base import Domains
from lorica.data.stream import Stream
from lorica.errors import DataError, LoricaError, RecipeError
from lorica.evaluation import accuracy_row
from lorica.learner import load
from lorica.methods import config_of, find_method, method_names
from lorica.report.tables import notes, summarise, to_markdown
from lorica.results import read_result
from lorica.run import check, evaluate, run
from lorica.training import learn_task
from tests.contract.test_methods import FIT

ALIKE = Domains(("day", "night"), np.repeat([0, 1], 72), np.repeat([0, 1], 36))


@pytest.fixture
def day_and_night(six_classes: Source) -> Source:
    """The six colours twice, the second time darker; the samples of a domain follow each other."""
    halves = []
    for half in (six_classes.train, six_classes.test):
        assert isinstance(half, ImageArrays)
        halves.append((np.concatenate([half.images, half.images // 3]), np.tile(half.labels, 2)))
    return replace(arrays(halves[0], halves[1], six_classes.class_names), domains=ALIKE)


def by_domain(source: Source, **options: Any) -> Stream:
    return Stream(source, reader=ImageReader(32), by="domain", tasks=2, **options)


@pytest.mark.parametrize(
    "division",
    [
        {"by": "domain", "tasks": 2},
        {"by": "class_and_domain", "tasks": 2},
        {"tasks": 2, "recurring": 1.0, "recur_share": 0.25},
    ],
    ids=["domain", "class_and_domain", "recurring"],
)
def test_every_method_learns_what_returns_or_refuses(
    kind, tiny_encoder, day_and_night: Source, division: dict[str, Any]
) -> None:
    stream = Stream(day_and_night, reader=ImageReader(32), **division)
    assert stream.tasks[1].classes == tuple(range(6))
    method = kind(tiny_encoder())
    if refused := list(type(method).misfits(method.config, stream.tasks)):
        assert "stream: task 2 has no new class" in refused[0]
        assert division.get("by") == "domain"  # no other stream has such a task
        return
    accelerator = Accelerator(cpu=True)
    for task in stream.tasks:
        learn_task(method, task, stream.train(task), FIT, seed=0, accelerator=accelerator)
    row = accuracy_row(method, stream.tasks, lambda index: stream.test(stream.tasks[index]), accelerator=accelerator)
    assert len(row) == 2
    (batch,) = stream.test(stream.tasks[1]).batches(100, device=torch.device("cpu"))
    logits = method.predict(batch.inputs)
    assert logits.shape == (len(batch.labels), 6)  # over all classes, whatever the task
    assert row[1] == pytest.approx((logits.argmax(1) == batch.labels).float().mean().item())


def test_the_tasks_of_domains(day_and_night: Source) -> None:
    stream = by_domain(day_and_night, seed=5)
    order = np.random.RandomState(5).permutation(6)
    assert stream.class_order == tuple(order)
    first, second = stream.tasks
    assert first.classes == first.new_classes == second.classes == tuple(range(6))
    assert second.new_classes == ()
    for task in stream.tasks:
        assert (len(stream.train(task)), len(stream.test(task))) == (72, 36)
        assert set(stream.train(task).indices.tolist()) == set(range(72 * task.index, 72 * task.index + 72))
        position = np.argsort(order)
        labels = position[day_and_night.test.labels[stream.test(task).indices]]
        assert stream.test(task).labels.tolist() == labels.tolist()


def test_classes_that_only_a_later_domain_has_come_last(day_and_night: Source) -> None:
    """Day has blue and cyan only, the last classes by number; night has all."""
    labels = day_and_night.train.labels
    assert isinstance(day_and_night.train, ImageArrays)
    is_day = np.isin(labels, (2, 5)) & (np.arange(144) < 72)
    source = replace(day_and_night, domains=ALIKE._replace(train=np.where(is_day, 0, 1), test=np.ones(72, int)))
    with pytest.raises(DataError, match=r"^stream\.tasks: task 1 \(blue, cyan\) has no test samples$"):
        by_domain(source)
    with pytest.raises(
        DataError, match=r"^stream: test samples of red, green, yellow, magenta are in a task before the first that"
    ):
        by_domain(replace(source, domains=ALIKE._replace(train=np.where(is_day, 0, 1))))
    is_tested = np.isin(day_and_night.test.labels, (2, 5)) & (np.arange(72) < 36)
    source = replace(source, domains=source.domains and source.domains._replace(test=np.where(is_tested, 0, 1)))
    first, second = by_domain(source, seed=None).tasks
    assert (first.class_names, first.new_classes) == (("blue", "cyan"), (0, 1))
    assert second.classes == tuple(range(6))
    assert second.new_names == ("red", "green", "yellow", "magenta")


def test_validation_holds_out_of_each_class_of_each_domain(day_and_night: Source) -> None:
    stream = by_domain(day_and_night, validation_fraction=0.25)
    for task in stream.tasks:
        assert torch.bincount(stream.validation(task).labels).tolist() == [3] * 6
        assert torch.bincount(stream.train(task).labels).tolist() == [9] * 6


def test_a_stream_of_domains_that_there_are_not(six_classes: Source, day_and_night: Source) -> None:
    with pytest.raises(
        DataError, match=r"^stream\.by: arrays has no domains; domain_folders and .* or stream\.by=class$"
    ):
        by_domain(six_classes)
    for options in ({"tasks": 3}, {"classes_per_task": 2}):
        with pytest.raises(
            DataError, match=r"^stream\.tasks: arrays has 2 domains, a task each.*; give stream\.tasks=2$"
        ):
            Stream(day_and_night, reader=ImageReader(32), by="domain", **options)


def test_a_run_over_domains(small_recipe: dict[str, Any], day_and_night: Source, tmp_path: Path) -> None:
    recipe = small_recipe | {"stream": {"by": "domain", "tasks": 2}, "method": {"name": "prototypes"}}
    result = run(recipe, out=tmp_path / "run", source=day_and_night, progress=False)
    assert [len(row) for row in result.accuracy] == [1, 2]
    assert [(len(task["classes"]), task["train"], task["test"]) for task in result.tasks] == [(6, 72, 36)] * 2
    again = evaluate(tmp_path / "run", source=day_and_night)
    assert again.accuracy == result.accuracy[1]
    assert result.recipe["stream"]["by"] == "domain"
    (table_row,) = summarise([read_result(tmp_path / "run")])
    assert (table_row.classes, table_row.tasks) == (6, 2)


def test_a_recipe_of_classes_reads_as_before_there_were_domains(small_recipe: dict[str, Any]) -> None:
    assert read_recipe(small_recipe).resolved()["stream"] == {"tasks": 3, "classes_per_task": None, "seed": 1993}


def test_methods_that_need_new_classes_say_so(small_recipe: dict[str, Any], day_and_night: Source) -> None:
    recipe = small_recipe | {"stream": {"by": "domain", "tasks": 2}}
    tasks = by_domain(day_and_night).tasks
    needs = [name for name in method_names() if [*find_method(name).misfits(config_of(name)(name=name), tasks)]]
    assert needs
    for name in needs:
        with pytest.raises(RecipeError, match=r"stream: task 2 has no new class, and .*; use a method that takes more"):
            check(recipe | {"method": {"name": name}}, source=day_and_night, progress=False)


@pytest.mark.parametrize(("by", "over"), [("domain", "domains"), ("class_and_domain", "tasks"), ("class", "tasks")])
def test_a_replayed_stream_averages_over_what_the_original_does(
    by: str, over: str, small_recipe: dict[str, Any], day_and_night: Source, tmp_path: Path
) -> None:
    """The recipe of a replay has a manifest alone, which says what its tasks are; also when it is replayed again."""
    recipe = small_recipe | {"method": "prototypes", "stream": {"by": by, "tasks": 2}}
    runs = [run(recipe, out=tmp_path / "0", source=day_and_night, progress=False)]
    for number in (1, 2):
        manifest = {"stream": {"manifest": str(tmp_path / str(number - 1) / "stream.jsonl")}}
        runs.append(run(recipe | manifest, out=tmp_path / str(number), source=day_and_night, progress=False))
    contents = [json.loads((tmp_path / str(number) / "metrics.json").read_text()) for number in range(3)]
    assert contents[0]["averaged_over"]["acc"] == over
    assert all(each["averaged_over"] == contents[0]["averaged_over"] for each in contents)
    assert all(each["stream_by"] == by for each in contents)
    assert all(read.accuracy == runs[0].accuracy and notes([read]) == notes(runs[:1]) for read in runs)
    (tmp_path / "0" / "metrics.json").write_text(json.dumps(contents[0] | {"stream_by": "domain"}))
    if by != "domain":
        with pytest.raises(LoricaError, match=f"stream_by is domain, but the recipe has '{by}'"):
            read_result(tmp_path / "0")


def test_two_classes_over_domains_have_a_half_total_error_rate(
    small_recipe: dict[str, Any], day_and_night: Source, tmp_path: Path
) -> None:
    """Held to predictions made anew, and to scikit-learn's balanced accuracy, whose complement it is."""
    halves = []
    for half in (day_and_night.train, day_and_night.test):
        assert isinstance(half, ImageArrays)
        halves.append((half.images, half.labels % 2))
    halves[1][1][::5] = 0  # so that some are wrong, more of one class than of the other
    random = np.random.RandomState(3)
    domains = Domains(("a", "b", "c"), random.randint(0, 3, 144), random.randint(0, 3, 72))
    source = replace(arrays(halves[0], halves[1], ["genuine", "forged"]), domains=domains)
    stream = {"by": "domain", "tasks": 3, "seed": None}
    result = run(
        small_recipe | {"stream": stream, "method": {"name": "prototypes"}}, out=tmp_path / "run", source=source,
        progress=False,
    )  # fmt: skip
    predicted = load(tmp_path / "run").predict(list(halves[1][0]))
    truth = np.array(["genuine", "forged"])[halves[1][1]]
    expected = [
        1 - balanced_accuracy_score(truth[domains.test == number], np.array(predicted)[domains.test == number])
        for number in range(3)
    ]
    assert 0 < np.mean(expected) < 0.6
    assert result.hter == pytest.approx(np.mean(expected))
    assert result.metrics.averaged_over("acc") == "domains"
    content = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert content["hter"] == pytest.approx(np.mean(expected))
    assert content["averaged_over"]["aaa"] == "domains so far, then over time"
    assert "| HTER |" in to_markdown(summarise([result]))
    assert "Accuracies are means over domains." in notes([result])
    (tmp_path / "run" / "metrics.json").write_text(json.dumps(content | {"hter": 0.9}))
    with pytest.raises(LoricaError, match=r"hter is 0\.9, but error_rates give"):
        read_result(tmp_path / "run")
    content["error_rates"][0] = [[0.0, 0.0]] if content["accuracy"][0] != [1.0] else [[1.0, 1.0]]
    (tmp_path / "run" / "metrics.json").write_text(json.dumps(content))
    with pytest.raises(LoricaError, match=r"error_rates\[0\]\[0\] is .* one of the two has been altered"):
        read_result(tmp_path / "run")

"""What `lorica merge` computes, against NumPy, one gradient at a time, and runs that are read while they learn."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lorica import merging
from lorica.adapters.attach import attached, merged
from lorica.assembly import assemble
from lorica.backbones import Site
from lorica.config import read_recipe
from lorica.data.stream import Stream
from lorica.errors import LoricaError
from lorica.learner import load
from lorica.merging import (
    RULES,
    Updates,
    added,
    average,
    chosen_rules,
    fisher,
    fisher_information,
    magmax,
    spectral,
    study,
    summary,
    ties,
)
from lorica.ownership import wrote
from lorica.progress import Silent
from lorica.results import Result, read_result
from lorica.run import run

Learn = Callable[..., Result]


@pytest.fixture(scope="module")
def learn(small_recipe: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Learn:
    """`learn(name, **sections)`: a run of the small recipe by the method of that name, each learned once."""
    known: dict[str, Result] = {}

    def make(name: str, *, stop_after: int | None = None, **sections: Any) -> Result:
        key = f"{name}{stop_after}{sections}"
        if key not in known:
            folder = tmp_path_factory.mktemp("runs") / name
            recipe = small_recipe | {"method": {"name": name}} | sections
            known[key] = run(recipe, out=folder, stop_after=stop_after, progress=False)
        return known[key]

    return make


@pytest.fixture
def updates() -> Tensor:
    """Three tasks' updates of one projection, of rank two each, in a space of rank six."""
    generator = torch.Generator().manual_seed(0)
    up, down = (torch.randn(3, *shape, generator=generator) for shape in ((9, 2), (2, 8)))
    return up @ down


@pytest.fixture
def information() -> Tensor:
    return torch.rand(3, 9, 8, generator=torch.Generator().manual_seed(1))


# ---- the rules


def test_average_and_sum() -> None:
    given = torch.tensor([[[1.0, -2.0]], [[3.0, 4.0]]])
    assert average(given).tolist() == [[2, 1]]
    assert added(given).tolist() == [[4, 2]]


def test_ties_by_hand() -> None:
    given = torch.tensor([[5.0, -4.0, 0.3, 0.2, 2.0], [-1.0, -2.0, 0.1, 9.0, -2.5], [3.0, 6.0, -0.2, -0.1, 0.5]])
    # the three largest of each row stay: (5, -4, 0, 0, 2), (0, -2, 0, 9, -2.5), (3, 6, 0, 0, 0.5)
    # signs of the sums 8, 0, 0, 9, 0: the second and the last cancel
    assert ties(given, share=0.6).tolist() == [4, 0, 0, 9, 0]
    # the largest alone: (5, …), (…, 9, …), (…, 6, …)
    assert ties(given).tolist() == [5, 6, 0, 9, 0]


@pytest.mark.parametrize("share", [0.2, 0.5, 1.0])
def test_ties_step_by_step(share: float, updates: Tensor) -> None:
    trimmed = updates.numpy().copy()
    for update in trimmed:
        order = np.argsort(-np.abs(update), axis=None)
        update.flat[order[round(share * update.size) :]] = 0
    expected = np.zeros(updates.shape[1:])
    for place in np.ndindex(*expected.shape):
        values = trimmed[(slice(None), *place)]
        alike = [value for value in values if value * values.sum() > 0]
        expected[place] = np.mean(alike) if alike else 0
    np.testing.assert_allclose(ties(updates, share=share).numpy(), expected, rtol=1e-5, atol=1e-7)


def test_magmax_entry_by_entry(updates: Tensor) -> None:
    found = magmax(updates).numpy()
    for place in np.ndindex(*found.shape):
        assert found[place] == max(updates.numpy()[(slice(None), *place)], key=abs)


def test_fisher_entry_by_entry(updates: Tensor, information: Tensor) -> None:
    information[:, 0] = 0
    information[1, 1] = 0
    found, values, weights = (each.double().numpy() for each in (fisher(updates, information), updates, information))
    np.testing.assert_allclose(found[0], values[:, 0].mean(axis=0), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(
        found[1:], np.average(values[:, 1:], axis=0, weights=weights[:, 1:]), rtol=1e-4, atol=1e-6
    )


def test_spectral_makes_singular_values_equal_and_keeps_their_vectors(updates: Tensor) -> None:
    found = spectral(updates).double().numpy()
    left, values, right = np.linalg.svd(updates.double().sum(dim=0).numpy())
    assert values[5] > 1e-3 > 1e-4 > values[6]  # the sum has rank six
    expected = np.zeros((9, 8))
    expected[range(6), range(6)] = values[:6].mean()
    np.testing.assert_allclose(left.T @ found @ right.T, expected, atol=1e-4)


def test_spectral_of_nothing_is_nothing() -> None:
    assert spectral(torch.zeros(2, 3, 4)).tolist() == torch.zeros(3, 4).tolist()


@pytest.mark.parametrize(
    "rule",
    [
        average,
        magmax,
        lambda given: ties(given, share=1.0),
        lambda given: fisher(given, torch.rand(given.shape, generator=torch.Generator().manual_seed(2))),
    ],
)
def test_equal_updates_merge_to_that_update(rule: Callable[[Tensor], Tensor], updates: Tensor) -> None:
    torch.testing.assert_close(rule(updates[:1].expand(4, -1, -1)), updates[0])


@pytest.mark.parametrize("name", RULES)
def test_the_order_of_the_tasks_does_not_matter(name: str, updates: Tensor, information: Tensor) -> None:
    site = Site(block=0, kind="q", linear="qkv", rows=(0, 9), in_features=8)

    def merge(order: list[int]) -> Tensor:
        return Updates((site,), updates[order].flatten(1), information[order].flatten(1)).merged(name, 3)

    torch.testing.assert_close(merge([0, 1, 2]), merge([2, 0, 1]))


def test_names_of_rules() -> None:
    assert chosen_rules("all") == RULES
    assert chosen_rules("ties, magmax,ties") == ("ties", "magmax")
    with pytest.raises(LoricaError) as caught:
        chosen_rules("tie,nothing,sum")
    assert caught.value.problems == (
        "--rule: no rule 'tie'; did you mean ties?",
        "--rule: no rule 'nothing'; give all, or some of average, sum, ties, magmax, fisher, spectral, with commas",
    )


# ---- updates and their Fisher information


def updates_of(learned: Result, *, with_information: bool = False) -> Updates:
    assert learned.path is not None
    parts = assemble(read_recipe(learned.recipe))
    return merging._updates(learned, parts, Silent(), with_information=with_information)


def test_updates_of_o_lora_are_its_products(learn: Learn) -> None:
    learned = learn("o_lora")
    method = load(learned.path or "").method
    found = updates_of(learned)
    for index in range(3):
        of_sites = found.by_site(found.of_tasks[index])
        for site in found.sites:
            direction = method.updates[site]  # type: ignore[index, operator]
            up, down = direction.frozen(index) if index < 2 else (direction.up.detach(), direction.down.detach())
            np.testing.assert_allclose(of_sites[site.name].numpy(), up.numpy() @ down.numpy(), atol=1e-6)


@pytest.mark.parametrize("name", ["sd_lora", "lora", "inf_lora"])
def test_updates_add_up_to_what_the_model_has(name: str, learn: Learn) -> None:
    learned = learn(name)
    found = updates_of(learned)
    for tasks in (1, 2, 3):
        own = attached(load(learned.path or "", tasks=tasks).method.encoder)
        of_sites = found.by_site(found.merged("sum", tasks))
        assert list(own) == list(found.sites)
        for site, give in own.items():
            torch.testing.assert_close(of_sites[site.name], give().detach(), atol=1e-6, rtol=1e-5)


def test_fisher_information_is_that_of_gradients_one_by_one(learn: Learn) -> None:
    learned = learn("o_lora")
    parts = assemble(read_recipe(learned.recipe))
    method = load(learned.path or "", tasks=2).method
    data, sites = parts.stream.train(parts.stream.tasks[1]), tuple(attached(method.encoder))
    found = fisher_information(method, data, sites, generator=torch.Generator().manual_seed(3))

    plain, generator = merged(method), torch.Generator().manual_seed(3)
    weights = [plain.encoder.get_submodule(site.linear).weight for site in sites]
    assert not any(weight.requires_grad for weight in weights)  # nothing is left of it
    expected = [torch.zeros(site.out_features, site.in_features) for site in sites]
    (batch,) = data.batches(len(data), device=torch.device("cpu"))
    assert len(data) <= 32  # so that the labels of both are drawn at once
    with torch.no_grad():
        own = plain.predict(batch.inputs)[:, method.task.columns]
    labels = torch.multinomial(own.softmax(dim=1), 1, generator=generator)[:, 0]
    for weight in weights:
        weight.requires_grad_()
    for image, label in zip(batch.inputs.split(1), labels, strict=True):  # type: ignore[union-attr]
        likelihood = F.log_softmax(plain.predict(image)[0, method.task.columns], dim=0)[label]
        for total, site, slope in zip(expected, sites, torch.autograd.grad(likelihood, weights), strict=True):
            total += slope[slice(*site.rows)].square()
    expected = torch.cat([total.flatten() for total in expected]) / len(data)
    assert expected.max() > 0
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-9 + 1e-4 * expected.max().item())


# ---- the study


@pytest.mark.parametrize(
    ("name", "evaluate"),
    [
        ("o_lora", {"readout": "discriminant", "drift": "affine"}),
        ("sd_lora", {"readout": "ridge", "layers": 2, "drift": "affine"}),
        ("lora", {"readout": "prototypes", "drift": "none"}),
        ("lora", {"readout": "aligned", "layers": 2, "drift": "affine"}),
    ],
)
def test_the_sum_read_so_is_the_run_read_so(name: str, evaluate: dict[str, Any], learn: Learn, tmp_path: Path) -> None:
    learned = learn(name, evaluate=evaluate)
    done = study(learned.path or "", tmp_path, rules=["sum"], **evaluate)
    assert done.rules["sum"].accuracy == learned.accuracy
    assert done.own[learned.label].accuracy == learned.accuracy
    assert learned.head is not None
    assert done.own[f"{name} (its head)"].accuracy == learned.head.accuracy


def test_a_scale_of_zero_is_the_plain_backbone(learn: Learn, tmp_path: Path) -> None:
    done = study(learn("o_lora").path or "", tmp_path, rules=["ties"], readout="prototypes", scale=0.0)
    assert done.rules["ties"].accuracy == learn("prototypes").accuracy


def test_a_study_looks_at_the_newest_tasks_images_alone_and_leaves_the_run(
    finished_run: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, train = [], Stream.train
    monkeypatch.setattr(Stream, "train", lambda self, task: (seen.append(task.index), train(self, task))[1])
    assert finished_run.path is not None
    before = {file: file.read_bytes() for file in finished_run.path.rglob("*") if file.is_file()}
    state = torch.get_rng_state()
    done = study(finished_run.path, tmp_path, drift="affine")
    assert torch.equal(torch.get_rng_state(), state)
    assert before == {file: file.read_bytes() for file in finished_run.path.rglob("*") if file.is_file()}
    # which tasks there are, the Fisher information, then one stage after another for each rule
    assert seen == [0, 1, 2] * (2 + len(RULES))
    assert tuple(done.rules) == RULES
    for found in done.rules.values():
        assert [len(row) for row in found.accuracy] == [1, 2, 3]
        assert found.acc > 1 / 6  # chance
    assert json.loads(done.file.read_text()) == done.content
    assert done.content["rules"]["ties"]["aaa"] == done.rules["ties"].aaa
    assert wrote(done.file)
    lines = [str(cell) for cell in summary(done).columns[0].cells]
    assert lines == [*RULES, "not merged: sd_lora"]
    again = study(finished_run.path, tmp_path, rules=["ties"], drift="affine")  # the file is replaced
    assert again.rules == {"ties": done.rules["ties"]}
    assert json.loads(done.file.read_text()) == again.content


def test_a_run_that_was_left_is_merged_as_far_as_it_came(learn: Learn, tmp_path: Path) -> None:
    done = study(learn("o_lora", stop_after=2).path or "", tmp_path, rules=["magmax"])
    assert [len(row) for row in done.rules["magmax"].accuracy] == [1, 2]


# ---- mistakes


@pytest.mark.parametrize("scale", [-1.0, float("nan"), float("inf")])
def test_scales_that_are_none(scale: float, tmp_path: Path) -> None:
    with pytest.raises(LoricaError, match="--scale: expected a number from 0 on, got"):
        study(tmp_path, scale=scale)


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LoricaError, match="not the folder of a run"):
        study(tmp_path)


def test_a_file_of_the_users_stays(finished_run: Result, tmp_path: Path) -> None:
    (tmp_path / merging.FILE).write_text('{"run": "mine"}')
    with pytest.raises(LoricaError, match=r"merging\.json: is in the way and not lorica's"):
        study(finished_run.path or "", tmp_path)
    assert (tmp_path / merging.FILE).read_text() == '{"run": "mine"}'


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("prototypes", "prototypes has no low-rank updates that merge into its backbone"),
        ("cl_lora", "cl_lora has no low-rank updates that merge into its backbone"),
        ("rolda", "rolda changes its backbone at the first task alone"),
        ("joint", "joint learns all tasks at once"),
    ],
)
def test_methods_without_an_update_of_each_task_are_refused(name: str, why: str, learn: Learn, tmp_path: Path) -> None:
    quick = {"method": {"name": name, "passes": 1}} if name == "rolda" else {}
    with pytest.raises(LoricaError, match=why):
        study(learn(name, **quick).path or "", tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_single_task_is_refused(learn: Learn, tmp_path: Path) -> None:
    with pytest.raises(LoricaError, match=r"1 of 3 tasks learned, and merging needs two; go on with it \(--resume\)"):
        study(learn("o_lora", stop_after=1).path or "", tmp_path)
    with pytest.raises(LoricaError, match=r"1 of 1 tasks learned, and merging needs two; learn a stream of more"):
        study(learn("o_lora", stream={"tasks": 1}).path or "", tmp_path)


def test_checkpoints_that_are_missing(learn: Learn, finished_run: Result, tmp_path: Path) -> None:
    newest = learn("o_lora", checkpoints="newest")
    with pytest.raises(LoricaError, match=r"none after 1, 2; learn it again with checkpoints=all \(it has newest\)"):
        study(newest.path or "", tmp_path)
    copy = tmp_path / "copy"
    shutil.copytree(finished_run.path or "", copy)
    (copy / "checkpoints" / "task_0001.safetensors").unlink()
    with pytest.raises(LoricaError, match=r"each of the run's 3 tasks, and there is none after 2, 3; restore them"):
        study(copy)


def test_data_that_has_moved_or_changed(
    learn: Learn, six_classes_file: Path, small_recipe: dict[str, Any], tmp_path: Path
) -> None:
    here = tmp_path / "here.npz"
    shutil.copy(six_classes_file, here)
    data = {"source": "arrays", "root": str(here)}
    learned = learn("o_lora", data=data)
    there = tmp_path / "there.npz"
    here.rename(there)
    with pytest.raises(LoricaError, match=r"here\.npz"):
        study(learned.path or "", rules=["sum"])
    done = study(learned.path or "", rules=["sum"], given={"data.root": str(there)})
    assert done.file == (learned.path or Path()) / "analysis" / merging.FILE
    changed = dict(np.load(there))
    changed["x_train"][0] = 0
    np.savez(there, **changed)
    with pytest.raises(LoricaError, match="since the run began"):
        study(learned.path or "", rules=["sum"], given={"data.root": str(there)})


def test_data_given_as_an_object(six_classes: Any, small_recipe: dict[str, Any], tmp_path: Path) -> None:
    recipe = {key: value for key, value in small_recipe.items() if key != "data"} | {"method": {"name": "o_lora"}}
    learned = run(recipe, source=six_classes, out=tmp_path / "run", progress=False)
    done = study(learned.path or "", rules=["sum"], source=six_classes)
    assert done.run == read_result(learned.path or "")

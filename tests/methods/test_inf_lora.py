"""InfLoRA: its subspaces against numpy's SVD of the tokens, by hand where energies decide, and when space runs out."""

import json
import math

import numpy as np
import pytest
import torch

from lorica.config import read_recipe
from lorica.cost import measure
from lorica.errors import RecipeError
from lorica.methods import Context
from lorica.methods.inf_lora import InfLoRA, InfLoRAConfig, Memory
from lorica.types import Batch, Task

TASKS = [Task.of_new_classes(t, 2 * t, (f"class {2 * t}", f"class {2 * t + 1}")) for t in range(4)]
WIDTH = 32
CPU = torch.device("cpu")


def learner(encoder, **options) -> InfLoRA:
    torch.manual_seed(0)
    return InfLoRA(InfLoRAConfig(name="inf_lora", **{"rank": 3, **options}), encoder)


def images(seed: int, number: int = 6) -> torch.Tensor:
    return torch.rand(number, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def context(method: InfLoRA, inputs: torch.Tensor, batch_size: int = 4) -> Context:
    def batches():
        return (Batch(part, torch.zeros(len(part), dtype=torch.long)) for part in inputs.split(batch_size))

    return Context(method.task, batches, 1, 1, lambda parameters, epochs: None)


def begin(method: InfLoRA, seed: int = 0) -> None:
    method.grow(TASKS[len(method.tasks)])
    method.begin_task(context(method, images(seed)))


def randomise(method: InfLoRA) -> None:
    with torch.no_grad():
        for parameter in method.trainable():
            parameter.normal_()


def tokens(method: InfLoRA, inputs: torch.Tensor) -> list[np.ndarray]:
    """H of every block, [width, tokens of all inputs], one image at a time and without hooks."""
    columns: list[list[np.ndarray]] = [[], []]
    with torch.no_grad():
        for image in inputs:
            x = method.encoder.embed(image[None])
            for index, block in enumerate(method.encoder.blocks):
                columns[index].append(block.norm1(x)[0].double().numpy().T)
                x = block(x)
    return [np.concatenate(each, axis=1) for each in columns]


def orthonormal(columns: int, seed: int = 0) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(WIDTH, columns, generator=torch.Generator().manual_seed(seed))).Q


def protect_randomly(method: InfLoRA, columns: int) -> list[np.ndarray]:
    """Gives every block that many random protected directions, in the form it keeps them in; returns them."""
    protected = []
    for index, (_, _, memory) in enumerate(method.parts()):
        basis = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(index))).Q
        memory.holds_free = columns > WIDTH / 2
        memory.vectors = basis[:, columns:] if memory.holds_free else basis[:, :columns]
        protected.append(basis[:, :columns].double().numpy())
    return protected


def current_down(adapter, rank: int = 3) -> np.ndarray:
    return adapter.down[-rank:].double().numpy()


def projector(vectors: np.ndarray) -> np.ndarray:
    return vectors @ vectors.T


# --- the second moments ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 4, 6])
def test_second_moments_are_means_over_all_tokens_in_one_pass(tiny_encoder, batch_size) -> None:
    method = learner(tiny_encoder())
    begin(method)
    randomise(method)
    calls = []
    handle = method.encoder.blocks[0].register_forward_pre_hook(lambda module, x: calls.append(len(x[0])))
    with torch.no_grad():
        moments = method.second_moments(context(method, images(1), batch_size))
    handle.remove()
    assert sum(calls) == 6
    for moment, h in zip(moments.values(), tokens(method, images(1)), strict=True):
        assert moment.dtype == torch.float64
        assert h.shape == (WIDTH, 6 * 17)  # 16 patches and the class token
        np.testing.assert_allclose(moment.numpy(), h @ h.T / h.shape[1], rtol=1e-4, atol=1e-5)
    assert not any(module._forward_pre_hooks for module in method.encoder.modules())


def test_hooks_go_when_the_pass_fails(tiny_encoder) -> None:
    method = learner(tiny_encoder())
    method.grow(TASKS[0])
    with pytest.raises(RuntimeError):
        method.begin_task(context(method, torch.rand(2, 5, 32, 32)))
    assert not any(module._forward_pre_hooks for module in method.encoder.modules())


# --- D --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["default", "released_code"])
def test_the_first_down_spans_the_leading_singular_vectors(tiny_encoder, variant) -> None:
    method = learner(tiny_encoder(), variant=variant, total_tasks=None if variant == "default" else 3)
    expected = tokens(method, images(0))
    begin(method)
    for (_, adapter, _), h in zip(method.parts(), expected, strict=True):
        down = current_down(adapter)
        np.testing.assert_allclose(down @ down.T, np.eye(3) / 3, atol=1e-6)
        leading = np.linalg.svd(h)[0][:, :3]
        np.testing.assert_allclose(3 * down.T @ down, projector(leading), atol=1e-3)
        assert not adapter.up.any()


@pytest.mark.parametrize("variant", ["default", "released_code"])
@pytest.mark.parametrize("columns", [12, 20])
def test_down_avoids_what_is_protected(tiny_encoder, columns, variant) -> None:
    """Both forms of the memory; numpy's SVD of the projected tokens, and of the projected C for the released code."""
    method = learner(tiny_encoder(), variant=variant, total_tasks=None if variant == "default" else 3)
    expected = tokens(method, images(0))
    protected = protect_randomly(method, columns)
    begin(method)
    for (_, adapter, _), m, h in zip(method.parts(), protected, expected, strict=True):
        down = current_down(adapter)
        assert np.abs(projector(m) @ down.T).max() < 1e-5
        np.testing.assert_allclose(down @ down.T, np.eye(3) / 3, atol=1e-6)
        seen = h if variant == "default" else h @ h.T / h.shape[1]
        leading = np.linalg.svd(seen - projector(m) @ seen)[0][:, :3]
        np.testing.assert_allclose(3 * down.T @ down, projector(leading), atol=1e-3)


@pytest.mark.parametrize("free", [2, 0])
def test_free_space_smaller_than_the_rank(tiny_encoder, free) -> None:
    method = learner(tiny_encoder())
    protected = protect_randomly(method, WIDTH - free)
    begin(method)
    randomise(method)
    for (_, adapter, _), m in zip(method.parts(), protected, strict=True):
        down = current_down(adapter)
        np.testing.assert_allclose(down @ down.T, np.diag([1 / 3] * free + [0.0] * (3 - free)), atol=1e-6)
        assert np.abs(projector(m) @ down.T).max(initial=0) < 1e-5
    assert torch.isfinite(method.predict(images(0))).all()
    with torch.no_grad():
        method.end_task(context(method, images(0)))
    assert torch.isfinite(method.predict(images(0))).all()


@pytest.mark.parametrize("columns", [12, 20, 31])
def test_an_update_leaves_protected_inputs_alone(tiny_encoder, columns) -> None:
    method = learner(tiny_encoder())
    begin(method)
    randomise(method)
    sites = method.encoder.select(("k", "v"))
    before = {site: method.increment(site).detach() for site in sites}
    protected = protect_randomly(method, columns)
    begin(method, seed=1)
    randomise(method)
    for site in sites:
        change = (method.increment(site).detach() - before[site]).numpy()
        assert np.abs(change).max() > 0.05
        assert np.abs(change @ protected[site.block]).max() < 1e-5


def test_weights_are_the_sums_over_tasks(tiny_encoder) -> None:
    method = learner(tiny_encoder())
    sums = {site: torch.zeros(WIDTH, WIDTH) for site in method.encoder.select(("k", "v"))}
    old: dict[str, torch.Tensor] = {}
    for seed in range(3):
        begin(method, seed)
        randomise(method)
        for name, adapter, _ in method.parts():
            assert name not in old or torch.equal(adapter.down[: len(old[name])], old[name])
            old[name] = adapter.down.clone()
        for site in sums:
            adapter = method.adapters[f"block{site.block}"]
            rows = slice(0, WIDTH) if site.kind == "k" else slice(WIDTH, 2 * WIDTH)
            sums[site] += adapter.up.detach()[rows] @ adapter.down[-3:]
    for site, expected in sums.items():
        torch.testing.assert_close(method.increment(site).detach(), expected, atol=1e-5, rtol=1e-5)


# --- the memory -----------------------------------------------------------------------------------------------------


def diagonal(*values: float) -> torch.Tensor:
    return torch.diag(torch.tensor(values, dtype=torch.double))


@pytest.mark.parametrize(
    ("share", "less_at_first", "expected"),
    [
        (0.5, False, 1),
        (0.75, False, 2),
        (0.9, False, 4),
        (0.95, False, 5),
        (0.95, True, 4),
        (0.5, True, 1),
        (1.0, False, 6),
    ],
)
def test_number_of_protected_directions_by_hand(share, less_at_first, expected) -> None:
    """16 in all; 8, 12, 14, 15, 15.6 and 16 in the leading ones."""
    memory = Memory(6, device=CPU)
    memory.protect(diagonal(0.6, 8, 2, 4, 0.4, 1), share, less_at_first=less_at_first)
    assert memory.protected == expected
    assert memory.holds_free == (expected > 3)
    left = np.delete(np.eye(6), [1, 3, 2, 5, 0, 4][:expected], axis=1)
    np.testing.assert_allclose(projector(memory.free().numpy()), projector(left), atol=1e-6)


def test_what_is_covered_already_counts(tiny_encoder) -> None:
    memory = Memory(6, device=CPU)
    memory.protect(diagonal(8, 0, 0, 0, 0, 0), 0.95, less_at_first=False)
    first = memory.vectors.clone()
    memory.protect(diagonal(19, 1, 0, 0, 0, 0), 0.95, less_at_first=False)  # the first direction has 19 of 20
    assert torch.equal(memory.vectors, first)
    memory.protect(diagonal(15, 4, 1, 0, 0, 0), 0.95, less_at_first=True)  # and now 15, so that the second is needed
    assert memory.protected == 2
    assert torch.equal(memory.vectors[:, :1], first)
    np.testing.assert_allclose(np.abs(memory.vectors[:, 1].numpy()), np.eye(6)[1], atol=1e-7)


def test_energy_is_covered_and_switching_loses_nothing() -> None:
    generator, memory, old = torch.Generator().manual_seed(0), Memory(WIDTH, device=CPU), None
    forms = []
    for t in range(12):
        h = torch.randn(WIDTH, 5, generator=generator, dtype=torch.double)
        moment, share = h @ h.T + 0.01 * torch.eye(WIDTH), 0.9 + 0.008 * t
        memory.protect(moment, share, less_at_first=False)
        free = memory.free().numpy()
        protected = np.linalg.svd(free)[0][:, free.shape[1] :]
        assert protected.shape[1] == memory.protected == WIDTH - free.shape[1]
        assert np.trace(protected.T @ moment.numpy() @ protected) >= share * np.trace(moment.numpy()) - 1e-4
        if old is not None:
            assert np.abs(free.T @ old).max(initial=0) < 1e-5  # what was protected stays so
        assert memory.vectors.shape[1] == min(memory.protected, free.shape[1])
        forms.append(memory.holds_free)
        old = protected
    assert forms[0] is False
    assert forms[-1] is True
    assert forms == sorted(forms)


def test_the_released_code_counts_singular_values_of_c(tiny_encoder) -> None:
    """Two tasks with its criteria written out: squared singular values of C, and of what is left of it."""
    method = learner(tiny_encoder(), variant="released_code", total_tasks=4, energy=(0.99, 0.999))
    bases: list[np.ndarray] = []
    for task in range(2):
        begin(method, seed=task)
        randomise(method)
        moments = [h @ h.T / h.shape[1] for h in tokens(method, images(task))]
        method.end_task(context(method, images(task)))
        share = 0.99 + 0.009 * task / 4
        for block, c in enumerate(moments):
            if task == 0:
                u, s, _ = np.linalg.svd(c)
                bases.append(u[:, : max(1, int(np.sum(np.cumsum(s**2) / np.sum(s**2) < share)))])
                continue
            left = c - projector(bases[block]) @ c
            u, s, _ = np.linalg.svd(left)
            covered, number = 1 - np.sum(s**2) / np.sum(c**2), 0
            while covered < share:
                covered, number = covered + s[number] ** 2 / np.sum(c**2), number + 1
            bases[block] = np.concatenate([bases[block], u[:, :number]], axis=1)
        for (_, _, memory), m in zip(method.parts(), bases, strict=True):
            np.testing.assert_allclose(projector(memory.free().numpy()), np.eye(WIDTH) - projector(m), atol=2e-3)


# --- options --------------------------------------------------------------------------------------------------------


def test_schedules() -> None:
    assert [InfLoRA.energy_share(of(), t) for t in (0, 5, 45)] == pytest.approx([0.95, 0.975, 0.995])
    paper = of(variant="paper", total_tasks=10)
    assert [InfLoRA.energy_share(paper, t) for t in (0, 1, 9, 10, 99)] == pytest.approx([0.95, 0.955, 0.995, 1.0, 1.0])
    assert InfLoRA.energy_share(of(energy=(0.98, 0.98)), 7) == pytest.approx(0.98)


def of(**options):
    class Configured:
        config = InfLoRAConfig(name="inf_lora", **options)

    return Configured()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variant": "paper"}, "variant paper .* give total_tasks"),
        ({"variant": "released_code"}, "variant released_code .* give total_tasks"),
        ({"total_tasks": 5}, "total_tasks: variant default does not use it"),
        ({"energy": [0.9, 0.8]}, "energy .* expected 0 < first <= second <= 1"),
        ({"projections": ["q"]}, "method.projections: unknown key"),
    ],
)
def test_recipes_that_do_not_fit_together(options, message) -> None:
    with pytest.raises(RecipeError, match=message):
        read_recipe("digits", {"method": {"name": "inf_lora", **options}})


@pytest.mark.parametrize("subspace", ["data", "free", "none"])
def test_ablations_of_the_subspace(tiny_encoder, subspace) -> None:
    method = learner(tiny_encoder(), subspace=subspace)
    protected = protect_randomly(method, 20) if subspace == "free" else [np.zeros((WIDTH, 0))] * 2
    expected = tokens(method, images(0))
    method.grow(TASKS[0])
    if subspace == "data":
        method.begin_task(context(method, images(0)))
    else:  # no look at the data
        method.begin_task(Context(method.task, lambda: pytest.fail("read"), 1, 1, lambda parameters, epochs: None))
    for (_, adapter, _), m, h in zip(method.parts(), protected, expected, strict=True):
        down = current_down(adapter)
        np.testing.assert_allclose(down @ down.T, np.eye(3) / 3, atol=1e-6)
        assert np.abs(m.T @ down.T).max(initial=0) < 1e-5
        leading = projector(np.linalg.svd(h)[0][:, :3])
        assert (np.abs(3 * down.T @ down - leading).max() < 1e-3) == (subspace == "data")
    assert math.isclose(np.square(down).sum(), 1, rel_tol=1e-5)  # as long as LoRA's uniform rows: 1 / 3 each
    if subspace != "free":
        method.end_task(Context(method.task, lambda: pytest.fail("read"), 1, 1, lambda parameters, epochs: None))
        assert method.diagnostics()["protected"] == [0, 0]


@pytest.mark.parametrize("subspace", ["data", "free", "none"])
def test_ablations_leave_the_order_of_batches_alone(tiny_encoder, subspace) -> None:
    after = []
    for options in ({}, {"subspace": subspace}):
        begin(learner(tiny_encoder(), **options))
        after.append(torch.rand(3))
    assert torch.equal(*after)


def test_the_end_of_a_task_protects_its_share(tiny_encoder, monkeypatch) -> None:
    shares = []
    monkeypatch.setattr(Memory, "protect", lambda self, moment, share, less_at_first: shares.append(share))
    method = learner(tiny_encoder())
    for _ in range(2):
        begin(method)
        method.end_task(context(method, images(0)))
    assert shares == pytest.approx([0.95, 0.95, 0.95 + 0.05 / 6, 0.95 + 0.05 / 6])  # t / (t + 5) of the way to 1


# --- state ----------------------------------------------------------------------------------------------------------


def test_cost_and_structure_when_the_memory_has_switched(tiny_encoder) -> None:
    method = learner(tiny_encoder(), energy=(0.9, 1.0))
    for seed in range(2):
        begin(method, seed)
        randomise(method)
        method.end_task(context(method, images(seed)))
    protect_randomly(method, 20)
    cost = measure(method)
    assert cost["stored_by_kind"] == {
        "adapters": 2 * 2 * (1 + 2) * 3 * WIDTH,  # tasks, blocks, one D and two U
        "bases": 2 * 12 * WIDTH,
        "head": 4 * (WIDTH + 1),
    }
    assert cost["trainable_by_kind"] == {"adapters": 2 * 2 * 3 * WIDTH, "head": 2 * (WIDTH + 1)}
    loaded = learner(tiny_encoder(), energy=(0.9, 1.0))
    for task in TASKS[:2]:
        loaded.grow(task)
    loaded.restore_structure(json.loads(json.dumps(method.structure())))
    loaded.load_own_state(method.own_state())
    assert loaded.diagnostics() == method.diagnostics()
    assert method.diagnostics()["protected"] == [20, 20]
    for each in (method, loaded):
        begin(each, 2)
    for (_, mine, _), (_, other, _) in zip(method.parts(), loaded.parts(), strict=True):
        assert torch.equal(mine.down, other.down)

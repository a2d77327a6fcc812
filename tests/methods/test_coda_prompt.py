"""CODA-Prompt: its weights and attention written out, orthogonal starts, and how pools are shared out."""

import math

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator

from lorica.config import read_recipe
from lorica.cost import measure
from lorica.data.images import ImageReader
from lorica.data.stream import Stream
from lorica.errors import BackboneError, RecipeError
from lorica.linalg import orthonormal_continuation
from lorica.methods.coda_prompt import CODAPrompt, CODAPromptConfig, overlap
from lorica.training import Fit, learn_task
from lorica.types import Batch, Task

TASKS = [Task.of_new_classes(t, 2 * t, (f"class {2 * t}", f"class {2 * t + 1}")) for t in range(4)]
WIDTH = 32
IMAGES = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
FIT = Fit(
    epochs=2,
    batch_size=8,
    optimizer="adamw",
    learning_rate=0.01,
    momentum=0.9,
    weight_decay=0.1,
    schedule="cosine",
    augment="none",
)


def learner(encoder, tasks: int, *, trained: bool = True, **options) -> CODAPrompt:
    """A learner, by default with trained-looking values: neither orthogonal nor of length 1."""
    torch.manual_seed(0)
    method = CODAPrompt(CODAPromptConfig(name="coda_prompt", **{"components": 3, "length": 2, **options}), encoder)
    for task in TASKS[:tasks]:
        method.grow(task)
        with torch.no_grad():
            for parameter in method.trainable() if trained else ():
                parameter.normal_()
    return method


def all_rows(method: CODAPrompt) -> list[torch.Tensor]:
    """P, K and A over all tasks, [blocks, m, size], in double precision."""
    parts = method.prompts, method.keys, method.attentions
    return [torch.cat([each.detach().flatten(2) for each in part], dim=1).double() for part in parts]


def by_hand(
    method: CODAPrompt, image: torch.Tensor, rows: dict[int, tuple[torch.Tensor, torch.Tensor]]
) -> torch.Tensor:
    """Logits of one image, the softmax over prefix rows and tokens written out head by head."""
    x = method.encoder.embed(image[None])
    for number, block in enumerate(method.encoder.blocks):
        own = block.attn
        q, k, v = own.qkv(block.norm1(x)).chunk(3, dim=-1)
        if number in rows:
            k, v = (torch.cat([before[None], after], dim=1) for before, after in zip(rows[number], (k, v), strict=True))
        heads = []
        for h in range(own.num_heads):
            part = slice(h * own.head_dim, (h + 1) * own.head_dim)
            scores = torch.exp(q[..., part] @ k[..., part].mT / math.sqrt(own.head_dim))
            heads.append(scores @ v[..., part] / scores.sum(dim=-1, keepdim=True))
        x = x + own.proj(torch.cat(heads, dim=-1))
        x = x + block.mlp(block.norm2(x))
    weight, bias = method.head.stacked()
    return method.encoder.pool(x) @ weight.T + bias


# --- weights and prompts --------------------------------------------------------------------------------------------


def test_weights_are_cosines_and_ignore_the_length_of_keys_and_queries(tiny_encoder) -> None:
    method = learner(tiny_encoder(), 2)
    queries = torch.randn(5, WIDTH)
    found = method.weights(queries)
    assert found.shape == (5, 2, 6)
    for task in range(2):
        for block in range(2):
            for m in range(3):
                key, attention = method.keys[task][block, m], method.attentions[task][block, m]
                expected = F.cosine_similarity(queries * attention, key[None], dim=1)
                torch.testing.assert_close(found[:, block, 3 * task + m], expected, atol=1e-6, rtol=1e-5)
    assert found.min() < -0.1  # no softmax
    assert found.abs().max() <= 1
    with torch.no_grad():
        method.keys[1][0, 2] *= 7
    torch.testing.assert_close(method.weights(0.01 * queries), found, atol=1e-6, rtol=1e-5)


def test_weights_reach_one_and_nothing_is_divided_by_zero(tiny_encoder) -> None:
    method = learner(tiny_encoder(), 1)
    query = torch.randn(1, WIDTH)
    with torch.no_grad():
        method.keys[0][0, 0] = 3 * query[0] * method.attentions[0][0, 0]
        method.keys[0][0, 1] = -query[0] * method.attentions[0][0, 1]
        method.keys[0][1, 0] = 0
        method.attentions[0][1, 1] = 0
    weights = method.weights(query)
    torch.testing.assert_close(weights[0, 0, :2], torch.tensor([1.0, -1.0]))
    assert weights[0, 1, :2].tolist() == [0, 0]
    weights.sum().backward()
    assert all(torch.isfinite(part[0].grad).all() for part in (method.keys, method.attentions))


def test_prediction_by_hand(tiny_encoder) -> None:
    """Every sum over components written out, every input by itself: the first rows are keys, the others values."""
    method = learner(tiny_encoder(), 2)
    logits = method.predict(IMAGES)
    assert logits.shape == (4, 4)
    for image, found in zip(IMAGES, logits, strict=True):
        query, rows = method.encoder.features(image[None])[0], {}
        for block in range(2):
            total = torch.zeros(4, WIDTH)  # as in the source: two rows of keys above two of values
            for task in range(2):
                for m in range(3):
                    seen, key = query * method.attentions[task][block, m], method.keys[task][block, m]
                    total = total + (seen @ key) / (seen.norm() * key.norm()) * method.prompts[task][block, m].reshape(
                        4, -1
                    )
            rows[block] = total[:2], total[2:]
        torch.testing.assert_close(by_hand(method, image, rows)[0], found, atol=1e-5, rtol=1e-4)
        swapped = {block: (values, keys) for block, (keys, values) in rows.items()}
        assert (by_hand(method, image, swapped)[0] - found).abs().max() > 1e-3


def test_zero_components_still_take_attention(tiny_encoder) -> None:
    method = learner(tiny_encoder(), 2)
    with torch.no_grad():
        for prompts in method.prompts:
            prompts.zero_()
    zeros = torch.zeros(2, WIDTH)
    for image, found in zip(IMAGES, method.predict(IMAGES), strict=True):
        torch.testing.assert_close(by_hand(method, image, {0: (zeros, zeros), 1: (zeros, zeros)})[0], found)
        frozen = method.head(method.encoder.features(image[None]))[0]
        torch.testing.assert_close(by_hand(method, image, {})[0], frozen)
        assert (frozen - found).abs().max() > 1e-4


def test_only_the_wanted_blocks_that_exist_have_prompts(tiny_encoder) -> None:
    method = learner(tiny_encoder(), 1, blocks=(1, 4))
    assert method.blocks == (1,)
    assert method.prompts[0].shape == (1, 3, 2, 2, WIDTH)
    assert method.classifier() is None
    with pytest.raises(BackboneError, match=r"method.blocks: tiny has blocks 0 to 1, asked for \[3\]"):
        learner(tiny_encoder(), 1, blocks=(3,))


# --- starts ---------------------------------------------------------------------------------------------------------


def test_new_rows_are_orthonormal_to_each_other_and_to_trained_ones(tiny_encoder) -> None:
    """The trained rows are far from orthogonal, which is where a projection onto each by itself fails."""
    method = learner(tiny_encoder(), 3, trained=False)
    for rows in all_rows(method):
        torch.testing.assert_close(rows @ rows.mT, torch.eye(9).double().expand(2, 9, 9), atol=1e-5, rtol=0)
    method = learner(tiny_encoder(), 3)
    trained = all_rows(method)
    method.grow(TASKS[3])
    for old, rows in zip(trained, all_rows(method), strict=True):
        assert torch.equal(rows[:, :9], old)
        new, unit = rows[:, 9:], F.normalize(old, dim=2)
        assert (unit @ unit.mT - torch.eye(9).double()).abs().max() > 0.05
        torch.testing.assert_close(new @ new.mT, torch.eye(3).double().expand(2, 3, 3), atol=1e-5, rtol=0)
        assert (new @ unit.mT).abs().max() < 1e-5
        assert (new[0] - new[1]).abs().max() > 0.01  # blocks have rows of their own


def test_starts_where_earlier_rows_depend_on_each_other_or_are_zero() -> None:
    earlier = torch.randn(2, 4, WIDTH)
    earlier[:, 1], earlier[:, 2] = -2 * earlier[:, 0], 0
    rows = orthonormal_continuation(earlier, 5)
    torch.testing.assert_close(rows @ rows.mT, torch.eye(5).expand(2, 5, 5), atol=1e-5, rtol=0)
    assert (rows @ earlier.mT).abs().max() < 1e-4


@pytest.mark.parametrize(("earlier", "kept"), [(27, 27), (30, 27), (80, 27)])
def test_starts_where_there_is_no_room(earlier, kept) -> None:
    """32 dimensions: beside 5 new rows there is room for 27."""
    old = torch.randn(2, earlier, WIDTH)
    rows = orthonormal_continuation(old, 5)
    torch.testing.assert_close(rows @ rows.mT, torch.eye(5).expand(2, 5, 5), atol=1e-5, rtol=0)
    assert (rows @ old[:, -kept:].mT).abs().max() < 1e-4
    if earlier > kept:
        assert (rows @ old[:, :-kept].mT).abs().max() > 0.01


def test_starts_follow_the_seed_and_differ() -> None:
    drawn = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        drawn.append(orthonormal_continuation(torch.empty(1, 0, 8), 8))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.allclose(drawn[0], drawn[2])


def test_starts_have_no_preferred_sign() -> None:
    torch.manual_seed(0)
    first = torch.stack([orthonormal_continuation(torch.empty(1, 0, 8), 2)[0, 0, 0] for _ in range(200)])
    assert 60 < (first > 0).sum() < 140


# --- the penalty ----------------------------------------------------------------------------------------------------


def test_penalty_by_hand() -> None:
    rows = torch.tensor([[[1.0, 1.0, 0.0], [0.0, 2.0, 0.0]], [[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]])
    # X X' - I is [[1, 2], [2, 3]] in the first block and 0 in the second
    assert overlap(rows).item() == pytest.approx((1 + 4 + 4 + 9) / 4)
    assert overlap(rows[1:]).item() == 0


@pytest.mark.parametrize(
    ("options", "mu"), [({}, 0.1), ({"variant": "released_code", "orthogonality_weight": 2.0}, 2.0)]
)
def test_loss_has_the_penalty_of_all_rows_so_far(tiny_encoder, options, mu) -> None:
    method = learner(tiny_encoder(), 1, trained=False, **options)
    batch = Batch(IMAGES, torch.tensor([0, 1, 0, 1]))
    [terms] = method.losses(batch)
    torch.testing.assert_close(terms["cross_entropy"], F.cross_entropy(method.predict(IMAGES), batch.labels))
    assert terms["orthogonality"].item() < 1e-9  # orthonormal as they start
    method = learner(tiny_encoder(), 2, **options)
    expected = 0.0
    for rows in all_rows(method):
        for block in rows:
            for i in range(6):
                for j in range(6):
                    expected += (float(block[i] @ block[j]) - (i == j)) ** 2 / 36
    assert method.regularisers()["orthogonality"].item() == pytest.approx(mu * expected, rel=1e-4)


@pytest.mark.parametrize("options", [{"variant": "released_code"}, {"orthogonality_weight": 0.0}])
def test_no_weight_no_penalty(tiny_encoder, options) -> None:
    [terms] = learner(tiny_encoder(), 1, **options).losses(Batch(IMAGES, torch.tensor([0, 1, 0, 1])))
    assert terms.keys() == {"cross_entropy"}


def test_weights_and_penalty_are_in_full_precision_under_autocast(tiny_encoder) -> None:
    method = learner(tiny_encoder(), 2)
    queries, exact = torch.randn(5, WIDTH), method.regularisers()["orthogonality"].item()
    prompts = method.assembled(queries)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        [terms] = method.losses(Batch(IMAGES, torch.tensor([2, 3, 2, 3])))
        torch.testing.assert_close(method.assembled(queries), prompts)
    assert terms["orthogonality"].item() == pytest.approx(exact, rel=1e-6)


# --- tasks ----------------------------------------------------------------------------------------------------------


def test_a_task_trains_its_own_components_and_leaves_the_earlier_ones_alone(tiny_encoder, six_classes) -> None:
    stream, method = Stream(six_classes, tasks=3, reader=ImageReader(32)), learner(tiny_encoder(), 0)
    accelerator = Accelerator(cpu=True)
    learned: dict[str, torch.Tensor] = {}
    for task in stream.tasks:
        trained = learn_task(method, task, stream.train(task), FIT, seed=0, accelerator=accelerator)
        last = task.index
        assert trained.keys() == {
            *(f"{part}.{last}" for part in ("prompts", "keys", "attentions")),
            f"head.weights.{last}",
            f"head.biases.{last}",
        }
        state = method.own_state()
        assert all(torch.equal(state[name], value) for name, value in learned.items())
        for rows in all_rows(method):  # weight decay and the penalty have moved what they could
            new = rows[:, 3 * last :]
            assert (new @ new.mT - torch.eye(3).double()).abs().max() > 1e-4
        learned = {name: value.clone() for name, value in state.items()}


def test_cost(tiny_encoder) -> None:
    cost = measure(learner(tiny_encoder(), 2))
    assert cost["forwards_per_prediction"] == 2
    assert cost["trainable_by_kind"] == {
        "prompts": 2 * 3 * 2 * 2 * WIDTH,  # blocks, components, keys and values, rows
        "keys": 2 * 3 * WIDTH,
        "attentions": 2 * 3 * WIDTH,
        "head": 2 * (WIDTH + 1),
    }
    assert cost["stored"] == 2 * cost["trainable"]


def test_the_published_pool_has_the_published_size(tiny_encoder) -> None:
    """5 blocks of width 768 with 100 components of 8 rows, two vectors each: 3.84M, counted on a narrower backbone."""
    config = CODAPromptConfig(name="coda_prompt", pool=100, total_tasks=10)
    assert config.of_a_task == CODAPromptConfig(name="coda_prompt").of_a_task == 10
    method = CODAPrompt(config, tiny_encoder())
    method.grow(TASKS[0])
    numbers = [parameter.numel() for parameter in method.trainable()[:3]]
    assert sum(numbers) * 10 * 5 / 2 * 768 / WIDTH == 5 * (100 * 8 * 768 + 2 * 100 * 768)


def test_a_pool_is_shared_out_as_components_of_a_task(tiny_encoder) -> None:
    """Nothing is there for later tasks that could have a say."""
    shared, own = (learner(tiny_encoder(), 2, **o) for o in ({"pool": 12, "total_tasks": 4, "components": None}, {}))
    assert own.own_state().keys() == shared.own_state().keys()
    assert torch.equal(shared.predict(IMAGES), own.predict(IMAGES))


def test_more_tasks_than_the_pool_is_for_are_refused(tiny_encoder) -> None:
    method = learner(tiny_encoder(), 2, pool=6, total_tasks=2, components=None)
    before = method.predict(IMAGES)
    with pytest.raises(RecipeError, match=r"the pool is for 2 tasks and this is task 3; give the number of all tasks"):
        method.grow(TASKS[2])
    assert torch.equal(method.predict(IMAGES), before)


def test_more_components_than_dimensions_are_refused(tiny_encoder) -> None:
    with pytest.raises(BackboneError, match=r"method.components: .* tiny has 32 dimensions; 33 components"):
        learner(tiny_encoder(), 0, components=33)
    assert learner(tiny_encoder(), 2, components=32).predict(IMAGES).isfinite().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pool": 100}, "pool and total_tasks belong together"),
        ({"total_tasks": 10}, "pool and total_tasks belong together"),
        ({"pool": 100, "total_tasks": 10, "components": 10}, "components and pool: give one of them"),
        ({"pool": 100, "total_tasks": 30}, "pool 100: expected a multiple of total_tasks, 30; give 120, or components"),
        ({"pool": 10, "total_tasks": 20}, "pool 10: expected a multiple of total_tasks, 20; give 20, or components"),
        ({"blocks": []}, "method.blocks"),
        ({"length": 0}, "method.length"),
        ({"components": 0}, "method.components"),
        ({"orthogonality_weight": -0.1}, "method.orthogonality_weight"),
        ({"pull_weight": 1.0}, "method.pull_weight: unknown key"),
    ],
)
def test_recipes_that_do_not_fit_together(options, message) -> None:
    with pytest.raises(RecipeError, match=message):
        read_recipe("digits", {"method": {"name": "coda_prompt", **options}})


def test_recipe_takes_the_settings_that_suit_it() -> None:
    fit = read_recipe("digits", {"method": {"name": "coda_prompt"}}).fit
    assert (fit.optimizer, fit.learning_rate, fit.weight_decay, fit.schedule) == ("adam", 1e-3, 0.0, "cosine")

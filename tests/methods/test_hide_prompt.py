"""HiDe-Prompt: the three stages by hand on a tiny ViT, the Gaussians against numpy, and classes with few images."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator

from lorica.adapters.prefix import prefixes
from lorica.checkpoint import _misfits
from lorica.config import read_recipe
from lorica.cost import measure
from lorica.data.images import ImageReader
from lorica.data.sources import arrays
from lorica.data.stream import Stream
from lorica.errors import BackboneError, RecipeError
from lorica.journal import BackboneLearnedOn
from lorica.methods import Context
from lorica.methods.hide_prompt import HiDePrompt, HiDePromptConfig, contrast
from lorica.randomness import Draws
from lorica.statistics import Gaussians, PseudoFeatures
from lorica.training import Fit, learn_task
from lorica.types import Batch, Task

TASKS = [
    Task.of_new_classes(0, 0, ("a", "b")),
    Task.of_new_classes(1, 2, ("c", "d", "e")),
    Task.of_new_classes(2, 5, ("f",)),
]  # of different sizes
TASK_OF = [0, 0, 1, 1, 1, 2]
CPU = torch.device("cpu")
FIT = Fit(
    epochs=1,
    batch_size=8,
    optimizer="adam",
    learning_rate=0.01,
    momentum=0.9,
    weight_decay=0.0,
    schedule="constant",
    augment="none",
)


def build(encoder, **options) -> HiDePrompt:
    defaults = {"length": 3, "centroids": 2, "alignment_epochs": 2}
    return HiDePrompt(HiDePromptConfig(name="hide_prompt", **{**defaults, **options}), encoder)


def grown(encoder, tasks: int = 3, **options) -> HiDePrompt:
    """With prompts and heads that differ between tasks."""
    torch.manual_seed(0)
    method = build(encoder, **options)
    for task in TASKS[:tasks]:
        method.grow(task)
        with torch.no_grad():
            method.prompts.rows[-1].normal_()
    return method


def images(number: int = 6, seed: int = 1) -> torch.Tensor:
    return torch.rand(number, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def learn(method: HiDePrompt, stream: Stream, tasks: range) -> None:
    for task in stream.tasks[tasks.start : tasks.stop]:
        learn_task(method, task, stream.train(task), FIT, seed=0, accelerator=Accelerator(cpu=True))


def oracle(method: HiDePrompt, classes: list[int], monkeypatch) -> None:
    """TII answers these classes, whatever the features are."""
    logits = F.one_hot(torch.tensor(classes), 6).float()
    monkeypatch.setattr(method.identity, "forward", lambda features: logits[: len(features)])


# --- within-task prediction -----------------------------------------------------------------------------------------


def test_a_prompt_in_training_is_mixed_with_the_mean_of_earlier_ones(tiny_encoder) -> None:
    method = grown(tiny_encoder(), 1)
    assert torch.equal(method.mixture(), method.prompts.rows[0])
    method = grown(tiny_encoder(), previous_share=0.25)
    p = [rows.detach() for rows in method.prompts.rows]
    assert p[0].shape == (2, 2, 3, 32)  # the tiny ViT has two of the five blocks
    expected = 0.75 * p[2] + 0.25 * (p[0] + p[1]) / 2
    torch.testing.assert_close(method.mixture(), expected)
    for parameter in method.parameters():
        parameter.requires_grad_(True)
    method.mixture().sum().backward()
    assert [rows.grad is None for rows in method.prompts.rows] == [True, True, False]
    torch.testing.assert_close(method.prompts.rows[2].grad, torch.full_like(p[2], 0.75))


def test_a_prompt_starts_where_the_one_before_has_ended(tiny_encoder) -> None:
    method = build(tiny_encoder())
    method.grow(TASKS[0])
    assert -1 <= method.prompts.rows[0].min() < -0.9
    assert 0.9 < method.prompts.rows[0].max() <= 1
    method.grow(TASKS[1])
    assert torch.equal(method.prompts.rows[1], method.prompts.rows[0])
    assert method.prompts.rows[1] is not method.prompts.rows[0]


@pytest.mark.parametrize(("cross_entropy", "first"), [("current_task", 2), ("all_seen", 0)])
@pytest.mark.parametrize("variant", ["default", "released_code"])
def test_loss_by_hand(tiny_encoder, cross_entropy, first, variant) -> None:
    method = grown(tiny_encoder(), 2, cross_entropy=cross_entropy, variant=variant, contrast_weight=0.3)
    generator = torch.Generator().manual_seed(3)
    method.prompted_features.fit(torch.randn(8, 32, generator=generator), torch.tensor([0, 0, 0, 0, 1, 1, 1, 1]))
    batch = Batch(images(4), torch.tensor([2, 3, 4, 2]))
    [terms] = method.losses(batch)
    e = 0.99 * method.prompts.rows[1] + 0.01 * method.prompts.rows[0]
    features = method.encoder.features(batch.inputs, prefixes=prefixes((0, 1), e[None]))
    weight, bias = method.head.stacked()
    logits = (features @ weight.T + bias)[:, first:]
    torch.testing.assert_close(terms["cross_entropy"], F.cross_entropy(logits, batch.labels - first))
    m = (
        torch.cat([method.prompted_features.means[0], method.prompted_features.means[1], features])
        .detach()
        .numpy()
        .astype(float)
    )
    if variant == "default":
        m /= np.linalg.norm(m, axis=1, keepdims=True)
    similarity = m @ m.T / 0.8
    largest = similarity.max(axis=1)
    rest = np.log(np.exp(similarity - largest[:, None]).sum(axis=1)) + largest
    assert terms["contrast"].item() == pytest.approx(0.3 * np.mean(rest - np.diag(similarity)), rel=1e-4, abs=1e-6)
    assert "contrast" not in next(grown(tiny_encoder(), 2, contrast_weight=0.0).losses(batch))


def test_contrast_acts_on_directions_and_is_zero_as_released() -> None:
    axes = torch.eye(2)
    far = contrast(axes[:1], axes[1:], normalised=True).item()  # each row: 1 / 0.8 for itself, 0 for the other
    assert far == pytest.approx(math.log(1 + math.exp(-1.25)))
    assert contrast(axes[:0], axes, normalised=True).item() == pytest.approx(far)  # the first task has no centroids
    assert contrast(5 * axes[:1], axes[:1], normalised=True).item() == pytest.approx(math.log(2))
    generator = torch.Generator().manual_seed(0)
    features = F.layer_norm(torch.randn(24, 768, generator=generator), (768,)).requires_grad_(True)
    released = contrast(torch.empty(0, 768), features, normalised=False)
    [gradient] = torch.autograd.grad(released, features)
    assert released.item() == 0
    assert not gradient.any()
    acts = contrast(torch.empty(0, 768), features, normalised=True)
    [gradient] = torch.autograd.grad(acts, features)
    assert acts.item() == pytest.approx(math.log(1 + 23 * math.exp(-1.25)), abs=0.05)  # 2.03: nearly orthogonal rows
    assert gradient.any()


# --- task identity and prediction -----------------------------------------------------------------------------------


def test_identity_logits_by_hand(tiny_encoder) -> None:
    method = grown(tiny_encoder())
    z = method.encoder.features(images())
    up, down = method.identity.residual[0], method.identity.residual[2]
    assert up.weight.shape == (64, 32)
    h = z + F.gelu(z @ up.weight.T + up.bias) @ down.weight.T + down.bias
    h = (h - h.mean(dim=1, keepdim=True)) / (h.var(dim=1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    weight, bias = method.identity.head.stacked()
    torch.testing.assert_close(method.identity(z), h @ weight.T + bias, atol=1e-5, rtol=1e-5)
    [terms] = method.identity_losses(Batch(images(), torch.full((6,), 5)))
    assert terms["identity"].item() == 0  # the last task has one class
    two = grown(tiny_encoder(), 2)  # the second task's classes are 2 to 4
    labels = torch.tensor([2, 3, 4, 4, 3, 2])
    [terms] = two.identity_losses(Batch(images(), labels))
    torch.testing.assert_close(terms["identity"], F.cross_entropy(two.identity(z)[:, 2:], labels - 2))
    best = method.identity(z).argmax(dim=1).tolist()
    assert method.identify(images()).tolist() == [TASK_OF[c] for c in best]


def test_each_input_gets_the_prompt_of_the_task_of_its_class(tiny_encoder, monkeypatch) -> None:
    """With an oracle in place of TII, predictions are those of a learner that is told the task."""
    method, x = grown(tiny_encoder()), images()
    oracle(method, [5, 0, 2, 4, 1, 3], monkeypatch)
    assert method.identify(x).tolist() == [2, 0, 1, 1, 0, 1]
    logits = method.predict(x)
    for i, task in enumerate([2, 0, 1, 1, 0, 1]):
        prompt = prefixes((0, 1), method.prompts.rows[task][None])
        own = method.head(method.encoder.features(x[i : i + 1], prefixes=prompt))
        torch.testing.assert_close(logits[i : i + 1], own, atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        method.prompts.rows[2].normal_()
    changed = (method.predict(x) - logits).abs().amax(dim=1) > 1e-6
    assert changed.tolist() == [True, False, False, False, False, False]


def test_predictions_do_not_depend_on_the_batch_unless_scrambled(tiny_encoder) -> None:
    x = images() * torch.tensor([1.0, 0.1, 1.0, 1.0, 0.1, 0.1]).view(-1, 1, 1, 1)
    for scrambled in (False, True):
        method = grown(tiny_encoder(), scrambled=scrambled)
        identity = method.identity
        with torch.no_grad():  # TII tells bright from dark: the last task from the first
            z = method.encoder.features(x[:2])
            bright, dark = identity.norm(z + identity.residual(z))
            for weight, bias in zip(identity.head.weights, identity.head.biases, strict=True):
                weight.zero_()
                bias.fill_(-1)
            identity.head.biases[0][1] = 0
            identity.head.weights[2][0] = bright - dark
            identity.head.biases[2][0] = (dark - bright) @ (dark + bright) / 2
        assert method.identify(x).tolist() == [2, 0, 2, 2, 0, 0]
        together, alone = method.predict(x), torch.cat([method.predict(image[None]) for image in x])
        assert torch.allclose(together, alone, atol=1e-5) is not scrambled
        assert torch.allclose(method.predict(x.flip(0)).flip(0), together, atol=1e-5) is not scrambled


def test_scrambled_prefixes_in_training(tiny_encoder) -> None:
    """With one prompt for all, half of a batch has its keys for values too, the other half its values for keys."""
    method, x = grown(tiny_encoder(), 1, scrambled=True), images(4)
    keys, values = method.prompts.rows[0][:, :1], method.prompts.rows[0][:, 1:]
    features = method.prompted(x, method.mixture()[None])
    for rows, part in ((torch.cat([keys, keys], 1), slice(0, 2)), (torch.cat([values, values], 1), slice(2, 4))):
        expected = method.encoder.features(x[part], prefixes=prefixes((0, 1), rows[None]))
        torch.testing.assert_close(features[part], expected, atol=1e-5, rtol=1e-5)


def test_a_prediction_takes_two_passes_and_no_tokens_more(tiny_encoder) -> None:
    method = grown(tiny_encoder())
    cost = measure(method)
    assert cost["forwards_per_prediction"] == 2
    assert cost["trainable_by_kind"] == {"head": 33, "prompts": 2 * 2 * 3 * 32}
    assert cost["stored_by_kind"] == {
        "frozen_features": 6 * 2 * (32 + 32),
        "head": 2 * 6 * 33,
        "identity": 2 * 64 * 32 + 64 + 32 + 2 * 32,
        "prompted_features": 6 * 2 * (32 + 32),
        "prompts": 3 * 2 * 2 * 3 * 32,
    }
    assert method.classifier() is None


# --- Gaussians ------------------------------------------------------------------------------------------------------


def three_groups() -> torch.Tensor:
    """Rows around three points far apart: 4, 2 and 1 of them."""
    centres = torch.tensor([[0.0, 0.0], [50.0, 0.0], [0.0, 50.0]]).repeat_interleave(torch.tensor([4, 2, 1]), dim=0)
    offsets = [[1, 0], [-1, 0], [0, 2], [0, -2], [3, 1], [-3, 1], [0, 0]]
    return centres + torch.tensor(offsets)


def test_clusters_by_hand() -> None:
    gaussians = Gaussians(2, 3, full=False, device=CPU)
    gaussians.grow(2)
    gaussians.fit(three_groups(), torch.ones(7, dtype=torch.long))
    assert gaussians.clusters.tolist() == [0, 3]
    order = gaussians.means[1, :, 0].add(gaussians.means[1, :, 1] * 2).argsort()
    torch.testing.assert_close(gaussians.means[1][order], torch.tensor([[0.0, 0], [50, 1], [0, 50]]))
    variances = gaussians.factors[1][order].square() - 1e-4
    torch.testing.assert_close(variances, torch.tensor([[0.5, 2], [9, 0], [0, 0]]), atol=1e-6, rtol=1e-5)
    assert not gaussians.means[0].any()
    torch.testing.assert_close(gaussians.centroids(), gaussians.means[1])


@pytest.mark.parametrize("full", [False, True])
def test_one_gaussian_for_a_class(full) -> None:
    gaussians, rows = Gaussians(2, 1, full=full, device=CPU), three_groups()
    gaussians.grow(1)
    gaussians.fit(rows, torch.zeros(7, dtype=torch.long))
    expected = np.cov(rows.numpy().T, bias=True) + 1e-4 * np.eye(2)
    np.testing.assert_allclose(gaussians.means[0, 0].numpy(), rows.mean(dim=0).numpy(), rtol=1e-5)
    factor = gaussians.factors[0, 0].numpy()
    np.testing.assert_allclose(factor @ factor.T if full else factor**2, expected if full else np.diag(expected), 1e-5)


@pytest.mark.parametrize(
    ("rows", "number"),
    [
        (torch.randn(3, 4, generator=torch.Generator().manual_seed(0)), 3),  # fewer images than centroids
        (torch.ones(1, 4), 1),
        (torch.ones(20, 4), 1),  # all alike
        (torch.eye(4)[:2].repeat(9, 1), 2),  # fewer different ones
    ],
)
@pytest.mark.parametrize("full", [False, True])
def test_classes_with_few_images(rows, number, full) -> None:
    gaussians = Gaussians(4, 1 if full else 10, full=full, device=CPU)
    gaussians.grow(1)
    gaussians.fit(rows, torch.zeros(len(rows), dtype=torch.long))
    assert gaussians.clusters.tolist() == [1 if full else number]
    if not full:
        found, expected = gaussians.centroids().numpy(), np.unique(rows.numpy(), axis=0)
        np.testing.assert_allclose(found[np.lexsort(found.T[::-1])], expected, atol=1e-6)
        torch.testing.assert_close(gaussians.factors[0, :number], torch.full((number, 4), 0.01))  # sqrt(1e-4)
    draws = gaussians.draw(gaussians.shares().repeat(50, 1), None)
    assert torch.isfinite(draws).all()


@pytest.mark.parametrize("full", [False, True])
def test_draws_have_the_stored_moments(full) -> None:
    generator = torch.Generator().manual_seed(0)
    mix = torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, -1.0], [0.0, 0.0, 0.5]])
    gaussians = Gaussians(3, 1, full=full, device=CPU)
    gaussians.grow(2)
    features = torch.randn(200, 3, generator=generator) @ mix
    gaussians.fit(torch.cat([features, features + 5]), torch.arange(2).repeat_interleave(200))
    draws = gaussians.draw(torch.tensor([[1, 0], [0, 0]]).repeat(20000, 1), generator).double().numpy()
    for shift, part in ((5, draws[::2]), (0, draws[1::2])):
        np.testing.assert_allclose(part.mean(axis=0), features.double().mean(dim=0).numpy() + shift, atol=0.06)
        expected = np.cov(features.double().numpy().T, bias=True)
        expected = expected if full else np.diag(np.diag(expected))
        np.testing.assert_allclose(np.cov(part.T), expected, atol=0.15)


def test_an_epoch_of_draws() -> None:
    """Classes with 3, 0, 1 and 2 clusters, each with as many shares as the others that have images."""
    gaussians = Gaussians(2, 3, full=False, device=CPU)
    gaussians.grow(4)
    far = torch.tensor([[0.0, 900.0], [900.0, 0.0]])
    gaussians.fit(torch.cat([three_groups(), torch.full((5, 2), -9e3), far]), torch.tensor([0] * 7 + [2] * 5 + [3] * 2))
    shares = [tuple(pair) for pair in gaussians.shares().tolist()]
    assert shares == [(0, 0), (0, 1), (0, 2), (2, 0), (2, 0), (2, 0), (3, 0), (3, 1), (3, 0)]
    everything = PseudoFeatures(gaussians, 9, times=5)
    batches = list(everything.batches(8, device=CPU, draws=Draws(0)))
    assert [len(batch.labels) for batch in batches] == [40] * 9 == [40] * everything.number_of_batches(8)
    assert torch.cat([batch.labels for batch in batches]).bincount().tolist() == [120, 0, 120, 120]
    assert all(len(batch.labels.unique()) == 3 for batch in batches)  # mixed
    third = next(b.inputs[b.labels == 2] for b in batches)
    torch.testing.assert_close(third.mean(dim=0), torch.full((2,), -9e3))
    some, draws = PseudoFeatures(gaussians, 4, times=1), [Draws(0, epoch=0), Draws(0, epoch=1)]
    first, again = (torch.cat([b.inputs for b in some.batches(8, device=CPU, draws=each)]) for each in draws)
    assert first.shape == (32, 2)
    assert not torch.equal(first, again)  # anew in each epoch
    rest = torch.cat([b.inputs for b in some.batches(8, device=CPU, draws=draws[0], first=3)])
    assert torch.equal(rest, first[24:])
    assert some.number_of_batches(8) == 4


# --- the end of a task ----------------------------------------------------------------------------------------------


@pytest.fixture
def stream(six_classes) -> Stream:
    return Stream(six_classes, tasks=3, reader=ImageReader(32))


def test_stages_at_the_end_of_a_task(tiny_encoder) -> None:
    """What each stage trains, on what, for how long; the prompt is consolidated before all of them."""
    method, stages = grown(tiny_encoder(), 2, previous_share=0.25, identity_learning_rate=0.1), []
    p0, p1 = (rows.detach().clone() for rows in method.prompts.rows)

    def descend(parameters, epochs, *, losses, data=None, **settings) -> None:
        stages.append((parameters, epochs, data, settings))

    x = images(9)
    batches = [Batch(x[:5], torch.tensor([2, 2, 2, 3, 3])), Batch(x[5:], torch.tensor([3, 4, 4, 4]))]
    method.end_task(Context(TASKS[1], lambda: iter(batches), 7, 14, descend))
    torch.testing.assert_close(method.prompts.rows[1].detach(), 0.75 * p1 + 0.25 * p0)
    assert torch.equal(method.prompts.rows[0], p0)

    inference, head, identity = stages
    wanted = {"residual.0.weight", "residual.0.bias", "residual.2.weight", "residual.2.bias", "norm.weight"}
    wanted |= {"norm.bias", "head.weights.1", "head.biases.1"}
    assert {id(p) for p in inference[0]} == {id(p) for n, p in method.identity.named_parameters() if n in wanted}
    assert inference[1:] == (7, None, {"learning_rate": 0.1, "schedule": "constant"})
    assert {id(p) for p in head[0]} == {id(p) for p in method.head.parameters()}
    assert {id(p) for p in identity[0]} == {id(p) for p in method.identity.parameters()}
    for _, epochs, _, settings in (head, identity):
        assert epochs == 2
        assert settings.pop("optimizer") == "sgd"
        assert settings.pop("schedule") == "cosine"
        assert settings == {"learning_rate": 0.005, "momentum": 0.9, "weight_decay": 0.0}
    assert (head[2].gaussians, head[2].number, head[2].times) == (method.prompted_features, 2, 5)  # two old classes
    assert (identity[2].gaussians, identity[2].number, identity[2].times) == (method.frozen_features, 2, 1)

    prompt = prefixes((0, 1), (0.75 * p1 + 0.25 * p0)[None])
    for gaussians, features in (
        (method.frozen_features, method.encoder.features(x)),
        (method.prompted_features, method.encoder.features(x, prefixes=prompt)),
    ):
        for label in (2, 3, 4):  # two clusters of three rows: one row, and the mean of the other two
            rows = features[3 * label - 6 : 3 * label - 3].detach()
            pairs = torch.stack([torch.stack([row, (rows.sum(dim=0) - row) / 2]) for row in rows])
            gaps = (torch.cat([pairs, pairs.flip(1)]) - gaussians.means[label]).abs().amax(dim=(1, 2))
            assert gaps.min() < 1e-5
        assert gaussians.clusters.tolist() == [0, 0, 2, 2, 2]


def test_the_first_task_is_not_aligned_and_epochs_can_be_set(tiny_encoder) -> None:
    batches = [Batch(images(4), torch.tensor([0, 0, 1, 1]))]
    for tasks, options, expected in ((1, {}, [9]), (1, {"identity_epochs": 4}, [4]), (2, {"alignment_epochs": 0}, [9])):
        method, found = grown(tiny_encoder(), tasks, **options), []

        def descend(parameters, epochs, found=found, **settings) -> None:
            found.append(epochs)

        method.end_task(Context(method.task, lambda: iter(batches), 9, 9, descend))
        assert found == expected


def test_alignment_moves_heads_and_identity_only(tiny_encoder, stream) -> None:
    method = build(tiny_encoder(), alignment_epochs=0)
    learn(method, stream, range(2))
    aligned = build(tiny_encoder())
    learn(aligned, stream, range(2))
    before, after = method.state_dict(), aligned.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    trained = {name for name in before if name.startswith(("head.", "identity."))}
    assert moved == trained


def test_without_alignment_old_rows_keep_their_bits(tiny_encoder, stream) -> None:
    method = build(tiny_encoder(), alignment_epochs=0)
    learn(method, stream, range(1))
    before = {name: value.clone() for name, value in method.own_state().items()}
    learn(method, stream, range(1, 2))
    after = method.own_state()
    for name in ("head.weights.0", "head.biases.0", "identity.head.weights.0", "identity.head.biases.0"):
        assert torch.equal(after[name], before[name])
    assert torch.equal(after["prompts.rows.0"], before["prompts.rows.0"])
    for name in ("frozen_features", "prompted_features"):
        assert torch.equal(after[f"{name}.means"][:2], before[f"{name}.means"])
    assert not torch.equal(after["identity.residual.0.weight"], before["identity.residual.0.weight"])


@pytest.mark.parametrize("statistics", ["multi_centroid", "variance", "covariance"])
def test_learns_colours_with_each_kind_of_statistics(tiny_encoder, stream, statistics) -> None:
    """Six colours in three tasks; the checkpoint holds all that predictions need."""
    options = {"statistics": statistics, "identity_epochs": 20, "identity_learning_rate": 0.005, "alignment_epochs": 30}
    method, fit = build(tiny_encoder(), **options), replace(FIT, epochs=15)
    for task in stream.tasks:
        learn_task(method, task, stream.train(task), fit, seed=0, accelerator=Accelerator(cpu=True))
    [batch] = stream.train_all().batches(72, device=CPU)
    assert (method.predict(batch.inputs).argmax(dim=1) == batch.labels).float().mean() > 0.8
    assert (method.identify(batch.inputs) == batch.labels // 2).float().mean() > 0.8
    copied = build(tiny_encoder(), **options)
    for task in stream.tasks:
        copied.grow(task)
    copied.restore_structure(json.loads(json.dumps(method.structure())))
    copied.load_own_state(method.own_state())
    assert torch.equal(copied.predict(batch.inputs), method.predict(batch.inputs))
    assert torch.equal(copied.prompted_features.factors, method.prompted_features.factors)


@pytest.mark.parametrize("statistics", ["multi_centroid", "variance", "covariance"])
def test_streams_with_classes_of_one_and_three_images(tiny_encoder, statistics) -> None:
    labels = np.array([0, 0, 0, 1, 2, 2, 2, 2, 3])
    pixels = np.random.RandomState(0).randint(0, 256, (9, 32, 32, 3)).astype(np.uint8)
    stream = Stream(arrays((pixels, labels), (pixels, labels)), tasks=2, reader=ImageReader(32))
    method = build(tiny_encoder(), statistics=statistics, centroids=10)
    learn(method, stream, range(2))
    expected = [3, 1, 4, 1] if statistics == "multi_centroid" else [1] * 4
    assert sorted(method.prompted_features.clusters.tolist()) == sorted(expected)
    assert torch.isfinite(method.predict(images())).all()


# --- options --------------------------------------------------------------------------------------------------------


def test_full_precision_under_autocast(tiny_encoder) -> None:
    method = grown(tiny_encoder())
    z = method.encoder.features(images())
    exact = method.identity(z)
    centroids = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    term = contrast(centroids, z, normalised=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(method.identity(z), exact)
        assert torch.equal(contrast(centroids, z, normalised=True), term)
        assert method.predict(images()).dtype == torch.float32
        [terms] = method.losses(Batch(images(), torch.full((6,), 5)))
    assert {value.dtype for value in terms.values()} == {torch.float32}


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"length": 0}, "length"),
        ({"blocks": []}, "blocks"),
        ({"previous_share": 1.5}, "previous_share"),
        ({"contrast_weight": -1}, "contrast_weight"),
        ({"identity_epochs": 0}, "identity_epochs"),
        ({"identity_learning_rate": 0}, "identity_learning_rate"),
        ({"statistics": "mean"}, "statistics"),
        ({"centroids": 0}, "centroids"),
        ({"alignment_epochs": -1}, "alignment_epochs"),
        ({"variant": "lora"}, "variant"),
        ({"pull_weight": 1.0}, "pull_weight: unknown key"),
    ],
)
def test_impossible_options_are_refused(options, key) -> None:
    with pytest.raises(RecipeError, match=f"method.{key}"):
        read_recipe("digits", {"method": {"name": "hide_prompt", **options}})


def test_blocks_that_the_backbone_lacks(tiny_encoder) -> None:
    assert build(tiny_encoder(), blocks=(1, 7)).prompts.blocks == (1,)
    with pytest.raises(BackboneError, match=r"method.blocks: tiny has blocks 0 to 1, asked for \[7\]"):
        build(tiny_encoder(), blocks=(7,))


def test_defaults() -> None:
    settings = HiDePrompt.fit_defaults(None)
    assert settings == HiDePrompt.fit_defaults("default") == HiDePrompt.fit_defaults("released_code")
    assert settings["learning_rate"] == pytest.approx(0.0028125)
    recipe = read_recipe("digits", {"method": {"name": "hide_prompt"}})
    assert recipe.method.length == 20
    assert recipe.fit.optimizer == "adam"


def test_what_earlier_versions_called_paper(tiny_encoder, tmp_path) -> None:
    assert HiDePromptConfig(name="hide_prompt", variant="paper") == HiDePromptConfig(name="hide_prompt")
    method = HiDePrompt(HiDePromptConfig(name="hide_prompt", blocks=(0, 1)), tiny_encoder())
    then = method.config.model_dump(mode="json") | {"variant": "paper"}
    encoder = method.encoder
    backbone = BackboneLearnedOn(name=encoder.name, tag=encoder.tag, fingerprint=encoder.fingerprint)
    assert _misfits(tmp_path, method, then, backbone) == []
    assert _misfits(tmp_path, method, then | {"variant": "released_code"}, backbone) != []

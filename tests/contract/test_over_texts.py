"""The essential part of the suite once more, over an encoder of texts: nothing in any method is about images."""

from __future__ import annotations

from pathlib import Path

import pytest
import test_methods
import test_steps
import torch
from test_methods import images, learn
from test_resume import assert_it_goes_on

from lorica.data.stream import Stream
from lorica.data.texts import TextReader
from lorica.methods import find_method, method_names
from lorica.types import Tokens
from tests.contract.conftest import kind_of

AGAIN = (
    test_methods.test_logits_cover_the_classes_seen_so_far,
    test_methods.test_a_prediction_does_not_depend_on_the_rest_of_its_batch,
    test_methods.test_what_does_not_train_keeps_its_bits,
    test_methods.test_state_round_trip,
    test_methods.test_merged_weights_predict_the_same_on_a_plain_backbone,
    test_methods.test_eight_threads_predict_as_one_does,
    test_methods.test_a_deep_copy_is_independent,
    test_methods.test_classes_that_return,
    test_steps.test_a_step_never_waits_for_the_device,
    test_steps.test_at_once_gives_the_losses_and_gradients_of_one_by_one,
)
globals().update({test.__name__: test for test in AGAIN})  # with the fixtures of this file


@pytest.fixture(
    params=[
        *((name, None) for name in method_names()),
        ("l2p", "prefix"),
        ("rolda", "always"),
        ("rolda", "core"),
    ],
    ids=str,
)
def kind(request: pytest.FixtureRequest):
    """Every method, in the variant that it has by default."""
    return kind_of(*request.param)


OTHERS = [
    (name, variant)
    for name in method_names()
    for variant in find_method(name).variants()
    if variant != getattr(find_method(name).Config(name=name), "variant", None)
]


@pytest.fixture(params=OTHERS, ids="-".join)
def other(request: pytest.FixtureRequest):
    """Every other variant."""
    return kind_of(*request.param)


@pytest.fixture
def tiny_encoder(tiny_text_encoder):
    return tiny_text_encoder


@pytest.fixture
def stream(six_topics, tiny_encoder) -> Stream:
    return Stream(six_topics, tasks=3, reader=TextReader(**tiny_encoder().reading()))


def test_a_prediction_does_not_depend_on_padding(kind, tiny_encoder, stream) -> None:
    """Neither of what is predicted, nor of the batches that were learned from."""
    method = kind(tiny_encoder())
    learn(method, stream)
    x, wide = images(stream), 30
    expected = method.predict(x)
    filler = torch.full((len(x), wide - x.ids.shape[1]), 7)
    padded = Tokens(torch.cat([x.ids, filler], dim=1), torch.cat([x.mask, filler < 0], dim=1))
    torch.testing.assert_close(method.predict(padded), expected, atol=1e-5, rtol=1e-4)
    for number, length in enumerate(x.mask.sum(dim=1).tolist()):
        alone = Tokens(x.ids[number : number + 1, :length], x.mask[number : number + 1, :length])
        torch.testing.assert_close(method.predict(alone)[0], expected[number], atol=1e-5, rtol=1e-4)


def test_a_task_goes_on_from_the_middle_of_it(kind, tiny_encoder, stream, tmp_path: Path) -> None:
    assert_it_goes_on(lambda: kind(tiny_encoder()), stream, tmp_path, (1, 4))


def test_the_other_variants(other, tiny_encoder, stream) -> None:
    """Two of the tests, which train them on all tasks: the rest is the same code as over images."""
    test_a_prediction_does_not_depend_on_padding(other, tiny_encoder, stream)
    test_methods.test_state_round_trip(other, tiny_encoder, stream)

"""Encoders of texts: the features of transformers' own models, through blocks that know from the tokens alone what is
padding."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from torch import nn

from lorica import network
from lorica.adapters.attach import attach, merged
from lorica.adapters.tuning import Bottlenecks, start_tuning
from lorica.backbones import load_backbone
from lorica.backbones.encoder import Classifier, Prefix
from lorica.backbones.hf_text import FAMILIES, HFText, TextBlock, load_hf_text, present
from lorica.errors import BackboneError
from lorica.types import Tokens

Make = Callable[..., HFText]
TINY = ("bert", "roberta", "modernbert", "t5")


def some_texts(longest: int = 24) -> Tokens:
    """Of 3, 9, … tokens; 24 is more than the window of the tiny ModernBERT."""
    lengths = torch.tensor([[3], [9], [longest], [5]])
    mask = torch.arange(longest) < lengths
    ids = torch.randint(1, 30, mask.shape, generator=torch.Generator().manual_seed(1))
    return Tokens(ids.masked_fill(~mask, 0), mask)


def noise(*shape: int) -> torch.Tensor:
    """The same for a shape."""
    return 0.2 * torch.randn(shape, generator=torch.Generator().manual_seed(3))


def of_transformers(encoder: HFText, inputs: Tokens) -> torch.Tensor:
    """What the model itself makes of them, after its own mask."""
    model = encoder.plain_model()
    return model(input_ids=inputs.ids, attention_mask=inputs.mask.long()).last_hidden_state


@pytest.mark.parametrize("family", TINY)
def test_features_are_those_of_the_model_itself(family: str, tiny_text_encoder: Make) -> None:
    encoder, inputs = tiny_text_encoder(family=family), some_texts()
    hidden = of_transformers(encoder, inputs)
    mean = torch.stack([row[mask].mean(dim=0) for row, mask in zip(hidden, inputs.mask, strict=True)])
    torch.testing.assert_close(encoder.features(inputs), mean, atol=1e-5, rtol=1e-4)
    if family != "t5":
        first = tiny_text_encoder(family=family, pooling="cls")
        torch.testing.assert_close(first.features(inputs), hidden[:, 0], atol=1e-5, rtol=1e-4)
        rest = torch.stack([row[mask][1:].mean(dim=0) for row, mask in zip(hidden, inputs.mask, strict=True)])
        expected = torch.stack([hidden[:, 0], rest], dim=1)
        torch.testing.assert_close(encoder.parts(encoder.tokens(inputs)), expected, atol=1e-5, rtol=1e-4)
    else:
        with pytest.raises(
            BackboneError, match=r"^backbone\.pooling: tiny_t5 has no token that stands for the whole text"
        ):
            tiny_text_encoder(family=family, pooling="cls")
        assert encoder.number_of_parts == 1


@pytest.mark.parametrize("family", TINY)
def test_padding_changes_nothing_and_stays_padding(family: str, tiny_text_encoder: Make) -> None:
    encoder, inputs = tiny_text_encoder(family=family), some_texts()
    tokens = encoder.embed(inputs)
    for block in encoder.blocks:
        assert torch.equal(present(tokens), inputs.mask)
        tokens = block(tokens)
    assert torch.equal(tokens.isnan().all(dim=2), ~inputs.mask)
    assert torch.equal(tokens.isnan().any(dim=2), ~inputs.mask)
    alone = torch.cat([encoder.features(Tokens(inputs.ids[n : n + 1, :m], inputs.mask[n : n + 1, :m]))
                       for n, m in enumerate(inputs.mask.sum(dim=1).tolist())])  # fmt: skip
    torch.testing.assert_close(encoder.features(inputs), alone, atol=1e-5, rtol=1e-4)
    # whatever the ids of padding are
    other = Tokens(inputs.ids.masked_fill(~inputs.mask, 7), inputs.mask)
    assert torch.equal(encoder.features(other), encoder.features(inputs))


@pytest.mark.parametrize("family", TINY)
def test_a_token_that_overflows_is_not_taken_for_padding(family: str, tiny_text_encoder: Make) -> None:
    encoder = tiny_text_encoder(family=family)
    ids = torch.tensor([[2, 9, 7, 3], [2, 9, 8, 3]])
    inputs = Tokens(ids, torch.ones(2, 4, dtype=torch.bool))
    expected = encoder.features(inputs)
    overflowing = next(each for each in encoder.blocks[0].modules() if isinstance(each, nn.Linear))
    before = overflowing.weight.data.clone()
    with torch.no_grad():
        encoder._vocabulary.weight[7] = float("inf")
    found = encoder.features(inputs)
    assert not found[0].isfinite().any()
    torch.testing.assert_close(found[1], expected[1])
    with torch.no_grad():  # within a block, in the values of every text
        encoder._vocabulary.weight[7] = encoder._vocabulary.weight[8]
        overflowing.weight.copy_(before.sign() * torch.finfo(torch.float32).max)
    tokens = encoder.blocks[0](encoder.embed(inputs))
    assert not tokens.isnan().any()
    assert tokens.isinf().any(dim=2).all()
    assert not encoder.features(inputs).isfinite().any()


def test_what_an_adapter_adds_is_not_taken_for_padding(tiny_text_encoder: Make) -> None:
    encoder, inputs = tiny_text_encoder(), some_texts()
    tuning = Bottlenecks(encoder, 4)
    with torch.no_grad():
        tuning.up.fill_(torch.finfo(torch.float32).max)
        tuning.up[:, :, ::2].neg_()  # of which one overflows, and the other, the other way
        tuning.down_bias.fill_(1e3)
    assert not tuning.features(encoder, inputs).isfinite().any()


@pytest.mark.parametrize("family", TINY)
def test_gradients_are_numbers_and_padding_has_none(family: str, tiny_text_encoder: Make) -> None:
    encoder, inputs = tiny_text_encoder(family=family).requires_grad_(True), some_texts()
    encoder.features(inputs).square().sum().backward()
    found = [parameter.grad for parameter in encoder.parameters() if parameter.grad is not None]
    assert len(found) > 12
    assert all(each.isfinite().all() for each in found)
    padding = encoder._vocabulary.weight.grad
    assert padding is not None
    assert padding[0].count_nonzero() == 0


@pytest.mark.parametrize("family", TINY)
def test_every_site_is_rows_of_one_linear_layer(family: str, tiny_text_encoder: Make) -> None:
    encoder = tiny_text_encoder(family=family)
    kinds = ("q", "k", "v", "proj", "fc1", "fc2")
    assert {site.kind for site in encoder.sites} == {*kinds, *(("gate",) if family in ("modernbert", "t5") else ())}
    assert [site.block for site in encoder.select(("q",))] == [0, 1]
    before = encoder.features(some_texts())
    for kind in kinds:
        changed = tiny_text_encoder(family=family)
        sites = changed.select((kind,))
        attach(changed, sites, lambda site: noise(site.out_features, site.in_features))
        own = {
            name
            for name, value in merged(changed).state_dict().items()
            if not torch.equal(value, encoder.state_dict()[name])
        }
        assert own == {f"{site.linear}.weight" for site in sites}
        assert not torch.allclose(changed.features(some_texts()), before)


def test_a_fused_projection_has_its_parts_in_order(tiny_text_encoder: Make) -> None:
    """Queries, keys, values, as transformers takes them apart: new values alone leave weights of attention as they
    are."""
    encoder = tiny_text_encoder(family="modernbert")
    rows = {site.kind: site.rows for site in encoder.sites if site.block == 0}
    assert (rows["q"], rows["k"], rows["v"]) == ((0, 32), (32, 64), (64, 96))
    assert (rows["fc1"], rows["gate"]) == ((0, 64), (64, 128))


@pytest.mark.parametrize("kind", ["adapter", "scale_and_shift", "deep_prompts", "shallow_prompts", "full"])
@pytest.mark.parametrize("family", TINY)
def test_every_tuning_has_a_place(family: str, kind: str, tiny_text_encoder: Make) -> None:
    encoder, inputs = tiny_text_encoder(family=family), some_texts()
    tuning = start_tuning(kind, encoder, rank=2, length=3)
    assert tuning is not None
    if kind in ("adapter", "full"):
        assert torch.equal(tuning.features(encoder, inputs), encoder.features(inputs))
    with torch.no_grad():
        for parameter in tuning.requires_grad_(True).parameters():
            parameter.add_(noise(*parameter.shape))
    found = tuning.features(encoder, inputs)
    assert not torch.allclose(found, encoder.features(inputs), atol=1e-3)
    alone = tuning.features(encoder, Tokens(inputs.ids[:1, :3], inputs.mask[:1, :3]))
    torch.testing.assert_close(found[:1], alone, atol=1e-5, rtol=1e-4)
    found.square().sum().backward()
    gradients = [each.grad for each in tuning.parameters() if kind != "full" or each.grad is not None]
    assert all(each is not None and each.isfinite().all() for each in gradients)


@pytest.mark.parametrize("family", TINY)
def test_a_prefix_is_attended_to_or_refused(family: str, tiny_text_encoder: Make) -> None:
    encoder, inputs = tiny_text_encoder(family=family), some_texts()
    if not encoder.takes_prefix(0):
        with pytest.raises(BackboneError, match=r"takes no prefix \(block 1\); choose a BERT as backbone\.name"):
            encoder.prefix_blocks((1,), key="method.blocks")
        assert family in ("modernbert", "t5")
        return
    rows = torch.randn(1, 2, 32, generator=torch.Generator().manual_seed(2))
    found = encoder.features(inputs, prefixes={1: Prefix(rows, 2 * rows)})
    assert not torch.allclose(found, encoder.features(inputs), atol=1e-3)
    # a prefix of no rows is none
    torch.testing.assert_close(
        encoder.features(inputs, prefixes={0: Prefix(rows[:, :0], rows[:, :0])}),
        encoder.features(inputs),
        atol=1e-6,
        rtol=1e-5,
    )
    # and one that is another text's keys and values of the first two tokens is as if these were there
    block = encoder.blocks[0]
    attention: Any = block.get_submodule("layer.attention.self")
    x = encoder.embed(inputs)[2:3]
    prefix = Prefix(attention.key(x[:, :2]), attention.value(x[:, :2]))
    torch.testing.assert_close(encoder.prefixed(0, prefix)(x[:, 2:]), block(x)[:, 2:], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", TINY)
@pytest.mark.parametrize("layers", [None, 2])
def test_a_stand_alone_classifier(family: str, layers: int | None, tiny_text_encoder: Make) -> None:
    encoder, inputs = tiny_text_encoder(family=family), some_texts()
    features = encoder.features(inputs, layers=layers)
    weight, bias = torch.randn(3, features.shape[1]), torch.randn(3)
    model = encoder.with_classifier(Classifier(weight, bias, layers))
    torch.testing.assert_close(model(inputs), features @ weight.T + bias, atol=1e-4, rtol=1e-4)
    assert all(isinstance(block, TextBlock) for block in encoder.blocks)
    assert any(isinstance(module, TextBlock) for module in model.modules()) == (layers is not None)


def test_what_it_is_measured_with(tiny_text_encoder: Make) -> None:
    encoder = tiny_text_encoder()
    assert encoder.example(3).ids.shape == (3, 32)  # it reads no more
    assert encoder.example(2).mask.all()
    probe = encoder.probe(4)
    assert len(set(probe.mask.sum(dim=1).tolist())) == 4
    assert torch.equal(encoder.probe(4).ids, probe.ids)
    assert encoder.operations()["model.embeddings"] == 32
    assert set(encoder.operations()) - {"model.embeddings"} == {
        f"model.encoder.layer.{n}.layer.{path}"
        for n in range(2)
        for path in (*FAMILIES["bert"].sites, "attention.output.LayerNorm", "output.LayerNorm")
    }


@pytest.fixture
def folder(tiny_text_folder: Path, tmp_path: Path) -> Path:
    """A checkpoint that a test may damage."""
    return Path(shutil.copytree(tiny_text_folder, tmp_path / "tiny"))


def test_a_checkpoint_is_loaded(folder: Path, tiny_text_encoder: Make) -> None:
    encoder, made = load_backbone("hf:mine", weights=folder), tiny_text_encoder(pooling="cls")
    assert isinstance(encoder, HFText)
    assert (encoder.name, encoder.tag, encoder.pooling, encoder.longest) == ("mine", "mine (tiny)", "cls", 40)
    theirs = made.state_dict()
    assert all(torch.equal(value, theirs[key]) for key, value in encoder.state_dict().items())
    assert torch.equal(encoder.eval().features(some_texts()), made.features(some_texts()))
    assert load_backbone("hf:mine", weights=folder, pooling="mean").pooling == "mean"  # type: ignore[attr-defined]
    random = load_backbone("hf:mine", weights=folder, pretrained=False)
    assert random.tag == "mine.random"
    assert random.fingerprint != encoder.fingerprint


def test_files_of_sentence_transformers_say_what_is_pooled_and_how_long_texts_are(folder: Path) -> None:
    (folder / "1_Pooling").mkdir()
    told = {"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(told))
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 20}')
    encoder = load_backbone("hf:mine", weights=folder)
    assert isinstance(encoder, HFText)
    assert (encoder.pooling, encoder.longest) == ("mean", 20)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(told | {"pooling_mode_max_tokens": True}))
    with pytest.raises(
        BackboneError, match=r"^backbone\.pooling: its own files ask for .*max_tokens, which lorica has not"
    ):
        load_backbone("hf:mine", weights=folder)


def test_training_drops_nothing(folder: Path) -> None:
    encoder = load_backbone("hf:mine", weights=folder).train()
    assert torch.equal(encoder.features(some_texts()), encoder.features(some_texts()))


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda folder: shutil.rmtree(folder), "is not a folder; give one with config.json"),
        (lambda folder: (folder / "config.json").unlink(), "config.json cannot be read"),
        (lambda folder: (folder / "config.json").write_text("[]"), "config.json holds no settings"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "gpt2"}'),
         "is of type 'gpt2'; lorica knows bert, roberta"),
        (lambda folder: (folder / "model.safetensors").unlink(),
         "has no model.safetensors, and no other weights are read"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"no"), "is not a whole safetensors file"),
        (lambda folder: (folder / "tokenizer.json").write_text("{}"), "has no tokeniser that"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "reads (none of tokenizer.json, vocab.txt is there)"),
        (lambda folder: with_more_words(folder), "gives tokens up to number 9000, and its config.json has"),
    ],
)  # fmt: skip
def test_faults_of_a_folder(damage: Callable[[Path], Any], expected: str, folder: Path) -> None:
    damage(folder)
    with pytest.raises(BackboneError) as caught:
        load_backbone("hf:mine", weights=folder)
    assert expected in str(caught.value)


def test_tensors_that_are_missing(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(BackboneError, match=r"lacks 16 tensors of a BertModel: encoder\.layer\.2"):
        load_backbone("hf:mine", weights=folder)


def test_keys_of_images_and_of_texts_are_told_apart(folder: Path) -> None:
    with pytest.raises(
        BackboneError, match=r"^backbone\.image_size, backbone\.normalisation: hf:mine reads texts, not images"
    ):
        load_backbone("hf:mine", weights=folder, image_size=32, normalisation="unit")
    with pytest.raises(BackboneError, match=r"^backbone\.pooling: lorica_tiny reads images"):
        load_backbone("lorica_tiny", pooling="mean")


def test_without_a_network_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # where nobody listens
    monkeypatch.setattr(network, "_SECONDS", 0.3)
    with pytest.raises(BackboneError) as caught:
        load_backbone("hf:nobody/nothing")
    (line,) = caught.value.problems
    assert line.startswith("backbone.name: cannot get nobody/nothing (127.0.0.1:9 cannot be reached: ")
    assert line.endswith(
        "download its files elsewhere and name their folder as backbone.weights=FOLDER, or choose "
        "backbone.name=lorica_tiny_text, which is embedded"
    )


def edited(folder: Path, file: str, **values: Any) -> None:
    content = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(content | values))


def with_more_words(folder: Path) -> None:
    """The tokeniser of another model, which knows more words."""
    file = folder / "tokenizer.json"
    told = json.loads(file.read_text())
    told["model"]["vocab"]["zebra"] = 9000
    file.write_text(json.dumps(told))


def swapped(folder: Path) -> None:
    """Two words change places in the vocabulary."""
    content = json.loads((folder / "tokenizer.json").read_text())
    words = content["model"]["vocab"]
    first, second = [word for word in words if word.isalpha()][:2]
    words[first], words[second] = words[second], words[first]
    (folder / "tokenizer.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    "change",
    [
        swapped,
        lambda folder: edited(folder, "config.json", hidden_act="relu"),
        lambda folder: edited(folder, "config.json", layer_norm_eps=0.1),
        lambda folder: edited(folder, "config.json", num_attention_heads=4),
    ],
    ids=["vocabulary", "activation", "epsilon", "heads"],
)
def test_equal_weights_that_compute_something_else_are_another_backbone(
    change: Callable[[Path], None], tiny_text_folder: Path
) -> None:
    before = load_hf_text("hf:tiny", weights=tiny_text_folder)
    assert load_hf_text("hf:tiny", weights=tiny_text_folder).fingerprint == before.fingerprint
    assert load_hf_text("hf:tiny", weights=tiny_text_folder, pooling="mean").fingerprint != before.fingerprint
    change(tiny_text_folder)
    assert load_hf_text("hf:tiny", weights=tiny_text_folder).fingerprint != before.fingerprint


def test_more_layers_than_the_configuration_has_are_refused(tiny_text_folder: Path) -> None:
    edited(tiny_text_folder, "config.json", num_hidden_layers=1)
    with pytest.raises(BackboneError, match=r"16 tensors more than its config\.json has layers for: encoder\.layer\.1"):
        load_hf_text("hf:tiny", weights=tiny_text_folder)


@pytest.mark.parametrize("pretrained", [False, True])
def test_a_pointer_is_no_weights_whether_they_are_wanted_or_not(pretrained: bool, tiny_text_folder: Path) -> None:
    (tiny_text_folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(BackboneError, match="is a Git LFS pointer in place of the weights"):
        load_hf_text("hf:tiny", weights=tiny_text_folder, pretrained=pretrained)

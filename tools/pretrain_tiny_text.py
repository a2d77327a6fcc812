"""Pre-train `lorica_tiny_text`, a small BERT, on docstrings and on requests that this script makes up.

No weights, no data set and nothing of the web is read. There are two kinds of texts:

* sentences of the docstrings of Python's standard library and of the packages in this environment, for the language;
* requests and remarks drawn at random from `everyday_words.txt` beside this file, for what everyday words have to do
  with each other. The file has sections (`#`), in which a line is a group of words of like meaning or kind: what one
  does (`>`), things (`=`) and their states (`~`). A sentence is a frame ("could you … for me") filled from one section.

**Words.** A WordPiece vocabulary is trained on both. Word vectors are then counted instead of learned: positive
pointwise mutual information of tokens, where n_ij sums 1 / sqrt(distance) of those within five places, and its singular
vectors, all of one length,

    M_ij = max(0, log n_ij n / (n_i m_j)),    m_j ~ n_j^0.75,    sum m = n,    M ≈ U S V',    e_i ~ U_i S^(1/2)      (1)

**Training** of the whole BERT from there, over the mean f of its tokens, normalised, with sigma = 16:

    loss = CE of the section, by sigma cos(f, w_s)  +  CE of the groups, uniform over those that a text draws on
           + InfoNCE of neighbouring sentences of a docstring, by sigma cos(f, f')                                  (2)

with AdamW, a warm-up and cosine decay. A word in ten of what is drawn is left out, and words of a docstring mostly come
between: without that, the BERT learns the frames by heart. All that is random in step `t` comes from the seed and `t`,
so a run goes on where it was interrupted. What is printed as "held out" is the accuracy of class means on
`held_out_requests.txt`, twelve intents of eight wordings to learn from and four to test, over twenty divisions; and
beside it, of bags of words.

    python tools/pretrain_tiny_text.py --steps 600 --work runs/text --out FOLDER
"""

from __future__ import annotations

import ast
import json
import math
import re
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Annotated, Any

import numpy as np
import torch
import typer
from safetensors import safe_open
from safetensors.torch import save_file
from scipy import sparse
from scipy.sparse.linalg import svds
from sklearn.feature_extraction.text import TfidfVectorizer
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor
from torch.nn import functional as F
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

HERE = Path(__file__).parent
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
VOCABULARY, LONGEST, WIDTH = 8000, 64, 192
DRAWN = 30_000
"""Requests among the texts that words are counted in."""
REQUESTS, PAIRS = 64, 12
"""Of a batch; pairs of sentences."""
SCALE, WINDOW = 16.0, 5
DROPPED, DISTURBED = 0.1, 0.6
"""How often a word of a request is left out, and words of a docstring come into it."""

ASKING = (
    "{act} {thing}", "please {act} {thing}", "can you {act} {thing}", "could you {act} {thing} for me",
    "i want to {act} {thing}", "i need to {act} {thing}", "i would like to {act} {thing}", "how do i {act} {thing}",
    "where can i {act} {thing}", "when can i {act} {thing}", "who can {act} {thing}",
    "is it possible to {act} {thing}", "help me {act} {thing}", "what is the best way to {act} {thing}",
    "should i {act} {thing}", "may i {act} {thing}", "we have to {act} {thing}", "i forgot to {act} {thing}",
    "do i have to {act} {thing}", "i'd like to {act} {thing}", "let us {act} {thing}", "why can't i {act} {thing}",
    "they did not {act} {thing}", "i am not able to {act} {thing}", "tell me how to {act} {thing}",
    "is there a way to {act} {thing}", "somebody should {act} {thing}", "i'm thinking of {acting} {thing}",
    "what about {acting} {thing}", "we are {acting} {thing}", "i {acted} {thing}", "she {acted} {thing}",
    "we {acted} {thing}", "have you {acted} {thing}", "{acting} {thing} is not easy", "who {acted} {thing}",
    "i have never {acted} {thing}",
)  # fmt: skip
SAYING = (
    "{thing} is {state}", "my {noun} is {state}", "why is {thing} {state}", "{thing} seems {state}",
    "is {thing} {state}", "{thing} is {state}, what now", "what can i do if {thing} is {state}",
    "{thing} was {state} again", "{thing} is still {state}", "i think {thing} is {state}",
    "the {noun} has been {state} since yesterday", "it is {state}", "everything is {state}", "{state} {noun}",
    "what do i do about a {state} {noun}", "are they {state}",
)  # fmt: skip
NAMING = (
    "{thing} and {other}", "{thing} with {other}", "is there {thing} for {other}", "which {noun} for {other}",
    "what about {thing} or {other}", "i have {thing} but no {other}", "where is {thing}",
    "there is {thing} on {other}", "{thing} of {other}", "how much is {thing}", "a question about {thing}",
    "do you have {thing}", "what is {thing}", "{thing}, {other}", "between {thing} and {other}",
    "how many of {thing} for {other}", "{thing} without {other}",
)  # fmt: skip
BEFORE = ("", "", "", "", "hello, ", "excuse me, ", "hi, ", "sorry, ", "so ", "well, ", "okay ", "quick question, ")
BEHIND = (
    "", "", "", "", " today", " tomorrow", " now", " please", " this week", " next week", " tonight",
    " as soon as possible", " on monday", " in the morning", " for me", " for two people", " for my mother",
    " before the weekend", " again", " thanks", " at home", " near here", " since yesterday", " at ten",
    " for three days", " every day", " in june", " right away",
)  # fmt: skip
ARTICLES = ("the ", "my ", "a ", "our ", "this ", "some ", "", "your ", "another ", "the ", "my ")
PAST = {
    "be": "been", "bring": "brought", "buy": "bought", "catch": "caught", "choose": "chose", "come": "came",
    "cut": "cut", "do": "did", "draw": "drew", "drink": "drank", "drive": "drove", "eat": "ate", "find": "found",
    "fly": "flew", "forget": "forgot", "get": "got", "give": "gave", "go": "went", "grow": "grew", "hang": "hung",
    "hear": "heard", "hide": "hid", "hold": "held", "hurt": "hurt", "keep": "kept", "learn": "learnt",
    "leave": "left", "lend": "lent", "lie": "lay", "lose": "lost", "make": "made", "meet": "met", "mow": "mowed",
    "pay": "paid", "put": "put", "quit": "quit", "read": "read", "ride": "rode", "ring": "rang", "rise": "rose",
    "say": "said", "see": "saw", "seek": "sought", "sell": "sold", "send": "sent", "set": "set", "sew": "sewed",
    "show": "showed", "shut": "shut", "sing": "sang", "sit": "sat", "sleep": "slept", "spend": "spent",
    "spell": "spelt", "sweep": "swept", "take": "took", "teach": "taught", "tell": "told", "try": "tried",
    "wake": "woke", "wear": "wore", "withdraw": "withdrew", "write": "wrote", "freeze": "froze", "break": "broke",
    "burn": "burnt", "leak": "leaked", "text": "texted", "fix": "fixed", "stop": "stopped", "plan": "planned",
    "drop": "dropped", "ship": "shipped", "chop": "chopped", "skip": "skipped", "swap": "swapped", "trim": "trimmed",
    "wrap": "wrapped", "pack": "packed", "fry": "fried", "tidy": "tidied", "dry": "dried", "carry": "carried",
    "scrub": "scrubbed", "mop": "mopped", "sip": "sipped", "hug": "hugged", "slam": "slammed", "stir": "stirred",
    "doze": "dozed", "bite": "bit", "feed": "fed", "let": "let", "sow": "sowed", "build": "built", "pot": "potted",
    "shop": "shopped", "owe": "owed", "blow": "blew", "sign": "signed", "park": "parked", "dial": "dialled",
}  # fmt: skip
DOUBLED = ("get", "put", "set", "let", "cut", "sit", "quit")


def acted(phrase: str) -> str:
    """What was done, of a phrase that begins with a verb."""
    verb, space, rest = phrase.partition(" ")
    return PAST.get(verb, verb + ("d" if verb.endswith("e") else "ed")) + space + rest


def acting(phrase: str) -> str:
    """What is being done, of a phrase that begins with a verb."""
    verb, space, rest = phrase.partition(" ")
    doubled = PAST.get(verb, "").endswith(verb[-1] * 2 + "ed") or verb in DOUBLED
    stem = verb[:-1] if verb.endswith("e") and not verb.endswith("ee") and verb != "be" else verb + verb[-1] * doubled
    return stem + "ing" + space + rest


def plural(noun: str) -> str:
    """Of a regular noun; what ends in s is taken for one already."""
    if noun.endswith(("s", "x", "ch", "sh")):
        return noun if noun.endswith("s") else noun + "es"
    return noun[:-1] + "ies" if noun.endswith("y") and noun[-2] not in "aeiou" else noun + "s"


@dataclass
class Section:
    """Groups of words, each with its number: what one does, things, and states of them."""

    acts: list[tuple[int, list[str]]] = field(default_factory=list)
    things: list[tuple[int, list[str]]] = field(default_factory=list)
    states: list[tuple[int, list[str]]] = field(default_factory=list)


class Requests:
    """What `everyday_words.txt` says, and texts drawn from it."""

    def __init__(self, file: Path) -> None:
        self.sections: list[Section] = []
        self.words: list[str] = []
        self.groups = 0
        for line in file.read_text(encoding="utf-8").splitlines():
            if line.startswith("#"):
                self.sections.append(Section())
                continue
            words = re.split(r"\s*[|,]\s*", line[2:].lower())
            part = {">": "acts", "=": "things", "~": "states"}[line[0]]
            getattr(self.sections[-1], part).append((self.groups, words))
            self.words += words
            self.groups += 1

    def draw(self, dice: Random) -> tuple[str, int, list[int]]:
        """A text, the number of its section, and of the groups it draws on."""
        number = dice.randrange(len(self.sections))
        section = self.sections[number]
        (first, nouns), (second, others) = dice.choice(section.things), dice.choice(section.things)
        noun = self._noun(dice, nouns)
        thing = dice.choice(ARTICLES) + noun
        other = dice.choice(ARTICLES) + self._noun(dice, others)
        kind, groups = dice.random(), [first]
        if kind < 0.45:
            group, acts = dice.choice(section.acts)
            act = dice.choice(acts)
            text = dice.choice(ASKING).format(act=act, acting=acting(act), acted=acted(act), thing=thing)
            groups.append(group)
            if dice.random() < 0.2:
                text += f" {dice.choice(('with', 'and', 'for', 'from', 'in', 'to'))} {other}"
                groups.append(second)
        elif kind < 0.7 and section.states:
            group, states = dice.choice(section.states)
            frame = dice.choice(SAYING)
            text = frame.format(thing=thing, noun=noun, state=dice.choice(states))
            groups = [group, first] if "{thing}" in frame or "{noun}" in frame else [group]
        elif kind < 0.9:
            frame = dice.choice(NAMING)
            text = frame.format(thing=thing, noun=noun, other=other)
            groups = [first, second] if "{other}" in frame else [first]
        else:  # words without a sentence
            picked = [dice.choice(section.acts + section.things + section.states) for _ in range(dice.randint(2, 4))]
            text, groups = " ".join(dice.choice(words) for _, words in picked), [group for group, _ in picked]
        return dice.choice(BEFORE) + text + dice.choice(BEHIND), number, groups

    @staticmethod
    def _noun(dice: Random, nouns: list[str]) -> str:
        noun = dice.choice(nouns)
        return plural(noun) if dice.random() < 0.3 else noun


def docstrings() -> Iterator[list[str]]:
    """Sentences that follow each other in docstrings of the standard library and of what is installed; each once."""
    usual = re.compile(r"^[A-Z][A-Za-z0-9 ,;:'\"()\-/]+[.!?]$")
    library, packages = Path(sysconfig.get_paths()["stdlib"]), Path(sysconfig.get_paths()["purelib"])
    seen: set[str] = set()
    for file in [*_sources(library), *_sources(packages)]:
        try:
            tree = ast.parse(file.read_text(encoding="utf-8"))
        except (SyntaxError, ValueError, RecursionError):
            continue
        documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        found = [ast.get_docstring(node) or "" for node in ast.walk(tree) if isinstance(node, documented)]
        for paragraph in (part for text in found for part in re.split(r"\n\s*\n", text)):
            run: list[str] = []
            for sentence in [*re.split(r"(?<=[.!?])\s+(?=[A-Z\"])", " ".join(paragraph.split())), ""]:
                if usual.match(sentence) and 4 <= len(sentence.split()) <= 30 and sentence.lower() not in seen:
                    seen.add(sentence.lower())
                    run.append(sentence)
                elif run:
                    yield run
                    run = []


def _sources(folder: Path) -> list[Path]:
    inside = (path for path in sorted(folder.rglob("*.py")) if path.is_file())
    return [path for path in inside if "site-packages" not in path.relative_to(folder).parts]


def train_tokenizer(texts: list[str], words: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=VOCABULARY, special_tokens=SPECIAL, show_progress=False)
    tokenizer.train_from_iterator([*texts, *words * 20], trainer)
    ends = [(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    tokenizer.enable_truncation(LONGEST)
    return tokenizer


def counted_vectors(texts: list[list[int]], size: int, dim: int) -> np.ndarray:
    """Equation (1)."""
    flat = np.concatenate([np.array([*ids, *[-1] * WINDOW]) for ids in texts])
    counts = sparse.csr_matrix((size, size))
    for step in range(1, WINDOW + 1):
        one, other = flat[:-step], flat[step:]
        both = (one >= len(SPECIAL)) & (other >= len(SPECIAL))
        pairs = (np.full(both.sum(), 1.0 / step**0.5), (one[both], other[both]))
        counts = counts + sparse.csr_matrix(pairs, shape=(size, size))
    counts = (counts + counts.T).tocoo()
    of = np.asarray(counts.sum(axis=1)).ravel()
    smoothed = of**0.75
    smoothed *= of.sum() / smoothed.sum()
    information = np.log(counts.data * of.sum() / (of[counts.row] * smoothed[counts.col]))
    kept = information > 0
    matrix = sparse.csr_matrix((information[kept], (counts.row[kept], counts.col[kept])), shape=(size, size))
    left, values, _ = svds(matrix, k=dim, v0=np.ones(size))
    return left * np.sqrt(values)


def padded(ids: list[list[int]]) -> dict[str, Tensor]:
    longest = max(map(len, ids))
    return {
        "input_ids": torch.tensor([each + [0] * (longest - len(each)) for each in ids]),
        "attention_mask": torch.tensor([[1] * len(each) + [0] * (longest - len(each)) for each in ids]),
    }


def pooled(model: BertModel, ids: list[list[int]]) -> Tensor:
    given = padded(ids)
    hidden = model(**given).last_hidden_state
    mask = given["attention_mask"][..., None]
    return (hidden * mask).sum(1) / mask.sum(1)


def held_out() -> tuple[list[str], np.ndarray]:
    texts, labels = [], []
    for line in (HERE / "held_out_requests.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("# "):
            labels.append([])
        else:
            texts.append(line)
            labels[-1].append(line)
    return texts, np.concatenate([np.full(len(each), number) for number, each in enumerate(labels)])


def class_means(features: np.ndarray, labels: np.ndarray) -> float:
    """Accuracy by cosine with class means, over twenty divisions into eight and four of each class."""
    rights = []
    for seed in range(20):
        place = np.random.RandomState(seed).permutation(12)[:8]
        train = np.zeros((labels.max() + 1, 12), bool)
        train[:, place] = True
        train = train.ravel()
        means = np.stack([features[train & (labels == label)].mean(0) for label in range(labels.max() + 1)])
        means /= np.linalg.norm(means, axis=1, keepdims=True)
        rights.append(float(((features[~train] @ means.T).argmax(1) == labels[~train]).mean()))
    return float(np.mean(rights))


@dataclass(frozen=True)
class Words:
    """A tokeniser, and a vector of each of its tokens."""

    tokenizer: Tokenizer
    vectors: np.ndarray

    @classmethod
    def of(cls, work: Path, runs: list[list[str]], everyday: Requests, seed: int) -> Words:
        """Those that `work` holds, or else new ones, which it then does."""
        made, counted = work / "words.json", work / "vectors.npy"
        if not counted.exists():
            texts = [sentence for run in runs for sentence in run]
            texts += [everyday.draw(Random(f"{seed} words {number}"))[0] for number in range(DRAWN)]
            tokenizer = train_tokenizer(texts, everyday.words)
            tokenizer.save(str(made))
            ids = [each.ids for each in tokenizer.encode_batch(texts)]
            np.save(counted, counted_vectors(ids, tokenizer.get_vocab_size(), WIDTH))
        return cls(Tokenizer.from_file(str(made)), np.load(counted))

    def ids(self, texts: Sequence[str], longest: int = LONGEST) -> list[list[int]]:
        return [each.ids[:longest] for each in self.tokenizer.encode_batch(list(texts))]


def initial(words: Words) -> BertModel:
    """A BERT whose word vectors are those that were counted."""
    config = BertConfig(
        vocab_size=len(words.vectors),
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=2 * WIDTH,
        max_position_embeddings=LONGEST,
        type_vocab_size=1,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    model = BertModel(config, add_pooling_layer=False)
    lengths = np.linalg.norm(words.vectors, axis=1, keepdims=True)
    vectors = torch.from_numpy((words.vectors * WIDTH**0.5 / np.maximum(lengths, 1e-6)).astype(np.float32))
    with torch.no_grad():
        table = model.embeddings.word_embeddings.weight
        table.copy_(torch.where(vectors.norm(dim=1, keepdim=True) > 0.5, vectors, 50 * table))  # rare ones have none
        model.embeddings.position_embeddings.weight *= 5
    return model


class Training(torch.nn.Module):
    """The BERT and what it is trained by, equation (2)."""

    def __init__(self, words: Words, everyday: Requests, runs: list[list[str]]) -> None:
        super().__init__()
        self.words, self.everyday = words, everyday
        self.sentences = [sentence for run in runs for sentence in run]
        self.neighbours = [run for run in runs if len(run) > 1]
        self.model = initial(words)
        self.sections = torch.nn.Parameter(torch.randn(len(everyday.sections), WIDTH) / WIDTH**0.5)
        self.groups = torch.nn.Parameter(torch.randn(everyday.groups, WIDTH) / WIDTH**0.5)

    def disturbed(self, text: str, dice: Random) -> str:
        """Without a word in ten, and mostly with some of a docstring between, as a request has words that say
        little."""
        words = [word for word in text.split() if dice.random() > DROPPED] or text.split()
        if dice.random() < DISTURBED:
            foreign = dice.choice(self.sentences).lower().rstrip(".").split()
            number = dice.randint(2, 6)
            first = dice.randrange(max(1, len(foreign) - number))
            place = dice.choice((0, len(words), dice.randrange(len(words) + 1)))
            words[place:place] = foreign[first : first + number]
        return " ".join(words)

    def features(self, texts: Sequence[str], longest: int = LONGEST) -> Tensor:
        return F.normalize(pooled(self.model, self.words.ids(texts, longest)), dim=1)

    def losses(self, dice: Random) -> dict[str, Tensor]:
        drawn = []
        for _ in range(REQUESTS):
            text, section, groups = self.everyday.draw(dice)
            drawn.append((self.disturbed(text, dice), section, groups))
        texts, sections, groups = zip(*drawn, strict=True)
        drawn_on = torch.zeros(REQUESTS, self.everyday.groups)
        for row, of_text in enumerate(groups):
            for group in of_text:
                drawn_on[row, group] += 1 / len(of_text)
        found = self.features(texts)
        chosen = [dice.choice(self.neighbours) for _ in range(PAIRS)]
        places = [dice.randrange(len(run) - 1) for run in chosen]
        both = [run[place + after] for after in (0, 1) for run, place in zip(chosen, places, strict=True)]
        one, other = self.features(both, 32).split(PAIRS)
        alike, same = SCALE * one @ other.T, torch.arange(PAIRS)
        by_section, by_group = (SCALE * found @ F.normalize(rows, dim=1).T for rows in (self.sections, self.groups))
        return {
            "section": F.cross_entropy(by_section, torch.tensor(sections)),
            "groups": F.cross_entropy(by_group, drawn_on),
            "neighbours": 0.5 * (F.cross_entropy(alike, same) + F.cross_entropy(alike.T, same)),
        }


def keep(training: Training, optimiser: torch.optim.Optimizer, step: int, file: Path) -> None:
    """Puts a training into a file, in place of the one that was there."""
    tensors = {f"training.{name}": tensor.clone() for name, tensor in training.state_dict().items()}
    for number, held in optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser.{number}.{name}": tensor.clone() for name, tensor in held.items()}
    save_file(tensors, file.with_suffix(".new"), metadata={"step": str(step)})
    file.with_suffix(".new").replace(file)


def restore(training: Training, optimiser: torch.optim.Optimizer, file: Path) -> int:
    """Takes a training out of a file; the steps that it had taken."""
    weights, states = dict[str, Tensor](), dict[int, dict[str, Tensor]]()
    with safe_open(file, framework="pt") as held:
        for key in held.keys():  # noqa: SIM118 (it is no mapping)
            part, _, name = key.partition(".")
            if part == "training":
                weights[name] = held.get_tensor(key)
            else:
                number, _, moment = name.partition(".")
                states.setdefault(int(number), {})[moment] = held.get_tensor(key)
        step = int(held.metadata()["step"])
    training.load_state_dict(weights)
    optimiser.load_state_dict({"state": states, "param_groups": optimiser.state_dict()["param_groups"]})
    return step


def train(training: Training, work: Path, steps: int, rate: float, seed: int) -> None:
    """Trains up to that many steps in all, from where `work` left it."""
    state, first, shown = work / "training.safetensors", 0, dict[str, float]()
    optimiser = torch.optim.AdamW(training.parameters(), lr=rate, weight_decay=0.01)
    if state.exists():
        first = restore(training, optimiser, state)
    texts, labels = held_out()
    for step in range(first, steps + 1):
        if step % 50 == 0 or step == steps:
            with torch.no_grad():
                right = class_means(training.features(texts).numpy(), labels)
            told = "".join(f", {name} {value:.2f}" for name, value in shown.items())
            print(f"step {step}: held out {100 * right:.1f} %{told}", flush=True)
            keep(training, optimiser, step, state)
        if step == steps:
            return
        for group in optimiser.param_groups:
            warmed = min(1.0, (step + 1) / (0.05 * steps))
            group["lr"] = rate * warmed * 0.5 * (1 + math.cos(math.pi * step / steps))
        losses = training.losses(Random(f"{seed} step {step}"))
        optimiser.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        torch.nn.utils.clip_grad_norm_(training.model.parameters(), 1.0)
        optimiser.step()
        for name, loss in losses.items():
            shown[name] = 0.95 * shown.get(name, loss.item()) + 0.05 * loss.item()


def write(training: Training, out: Path) -> None:
    """An encoder as transformers saves it, in float16, with what sentence-transformers says of its pooling."""
    training.model.half().save_pretrained(out)
    named = {name: f"[{name.removesuffix('_token').upper()}]" for name in ("pad_token", "unk_token", "cls_token")}
    PreTrainedTokenizerFast(
        tokenizer_object=training.words.tokenizer,
        model_max_length=LONGEST,
        sep_token="[SEP]",
        mask_token="[MASK]",
        **named,
    ).save_pretrained(out)
    (out / "1_Pooling").mkdir(exist_ok=True)
    pooling = {"word_embedding_dimension": WIDTH, "pooling_mode_mean_tokens": True}
    (out / "1_Pooling" / "config.json").write_text(json.dumps(pooling, indent=2) + "\n")


def main(
    out: Annotated[Path, typer.Option(help="folder for config.json, model.safetensors and tokenizer.json")],
    work: Annotated[Path, typer.Option(help="folder for the words and the state of training, which resumes from it")],
    steps: Annotated[int, typer.Option(help="of training, in all")] = 600,
    rate: Annotated[float, typer.Option(help="the highest learning rate")] = 1e-3,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Train, and write an encoder as transformers saves it."""
    work.mkdir(parents=True, exist_ok=True)
    everyday = Requests(HERE / "everyday_words.txt")
    runs = list(docstrings())
    print(f"{sum(map(len, runs))} sentences, {everyday.groups} groups of {len(everyday.words)} everyday words")
    torch.manual_seed(seed)
    training = Training(Words.of(work, runs, everyday, seed), everyday, runs)
    texts, labels = held_out()
    bags: Any = TfidfVectorizer(sublinear_tf=True, use_idf=False).fit_transform(texts)
    print(f"held out, bags of words: {100 * class_means(bags.toarray(), labels):.1f} %")
    train(training, work, steps, rate, seed)
    write(training, out)


if __name__ == "__main__":
    typer.run(main)

"""What texts give without an encoder: bags of words, on CLINC150 in 15 tasks of 10 intents, or on the requests that
ship with lorica in 5 tasks of 4.

    python benchmarks/bag_of_words.py data_full.json
    python benchmarks/bag_of_words.py --discriminant

Words are counted sublinearly, without weights of documents unless `--weighted` asks for them; the vocabulary is that of
the tasks so far. A class is the mean of its training texts, and predictions are by cosine over all classes so far; or
by a linear discriminant, with one covariance shrunk as RoLDA shrinks it.
"""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

import numpy as np
import typer
from sklearn.feature_extraction.text import TfidfVectorizer

from lorica.data.sources import load_source
from lorica.data.texts import Texts
from lorica.statistics import SHRINKAGE


def main(
    file: Annotated[Path | None, typer.Argument(help="CLINC150 as its authors publish it; default: requests")] = None,
    classes_per_task: Annotated[int | None, typer.Option(help="intents of a task; default 10, of requests 4")] = None,
    seed: Annotated[int, typer.Option(help="of the class order")] = 1993,
    weighted: Annotated[bool, typer.Option("--weighted", help="words by how few texts have them")] = False,
    discriminant: Annotated[bool, typer.Option("--discriminant", help="in place of class means")] = False,
) -> None:
    """Print the accuracy after the last task, and its average over tasks, percent."""
    content = json.loads(file.read_text()) if file else _requests()
    size = classes_per_task or (10 if file else 4)
    names = sorted({label for _, label in content["train"]})
    number = {names[place]: rank for rank, place in enumerate(np.random.RandomState(seed).permutation(len(names)))}
    (train, test), (of_train, of_test) = (
        [[text for text, _ in content[half]] for half in ("train", "test")],
        [np.array([number[label] for _, label in content[half]]) for half in ("train", "test")],
    )
    rows = []
    for seen in range(size, len(names) + 1, size):
        counted = TfidfVectorizer(sublinear_tf=True, use_idf=weighted)
        words: Any = counted.fit_transform([text for text, label in zip(train, of_train, strict=True) if label < seen])
        labels, tested = of_train[of_train < seen], of_test[of_test < seen]
        asked: Any = counted.transform([text for text, label in zip(test, of_test, strict=True) if label < seen])
        means = np.stack([np.asarray(words[labels == label].mean(axis=0))[0] for label in range(seen)])
        if discriminant:
            logits = _discriminant(words.toarray(), labels, means, asked.toarray())
        else:
            logits = asked @ (means / np.linalg.norm(means, axis=1, keepdims=True)).T
        right = logits.argmax(axis=1) == tested
        tasks = range(seen // size)
        rows.append(fmean(float(right[tested // size == task].mean()) for task in tasks))
    print(f"Acc {100 * rows[-1]:.1f}, AAA {100 * fmean(rows):.1f}")


def _requests() -> dict[str, list[tuple[str, str]]]:
    source = load_source("requests", root=None)
    found = {}
    for half, samples in (("train", source.train), ("test", source.test)):
        assert isinstance(samples, Texts)
        names = [source.class_names[label] for label in samples.labels]
        found[half] = list(zip(samples.texts, names, strict=True))
    return found


def _discriminant(words: np.ndarray, labels: np.ndarray, means: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """Logits [n, classes], equation (2) of `lorica.statistics.Discriminant`."""
    spread = words - means[labels]
    covariance = (1 - SHRINKAGE) / (len(words) - len(means)) * spread.T @ spread
    covariance[np.diag_indices_from(covariance)] += SHRINKAGE / (1 - SHRINKAGE) * covariance.trace() / len(covariance)
    centred = means - means.mean(axis=0)
    rows = np.linalg.solve(covariance, centred.T)
    return (asked - means.mean(axis=0)) @ rows - 0.5 * (centred.T * rows).sum(axis=0)


if __name__ == "__main__":
    typer.run(main)

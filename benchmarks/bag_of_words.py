"""What texts give without an encoder: nearest class mean of bags of words, on CLINC150 in 15 tasks of 10 intents.

    python benchmarks/bag_of_words.py data_full.json

Words are counted sublinearly, without weights of documents; the vocabulary is that of the tasks so far, and a class is
the mean of its training texts. Predictions are by cosine over all classes so far.
"""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean
from typing import Annotated

import numpy as np
import typer
from sklearn.feature_extraction.text import TfidfVectorizer


def main(
    file: Annotated[Path, typer.Argument(help="CLINC150 as its authors publish it")],
    classes_per_task: Annotated[int, typer.Option(help="intents of a task")] = 10,
    seed: Annotated[int, typer.Option(help="of the class order")] = 1993,
) -> None:
    """Print the accuracy after the last task, and its average over tasks, percent."""
    content = json.loads(file.read_text())
    names = sorted({label for _, label in content["train"]})
    number = {names[place]: rank for rank, place in enumerate(np.random.RandomState(seed).permutation(len(names)))}
    (train, test), (of_train, of_test) = (
        [[text for text, _ in content[half]] for half in ("train", "test")],
        [np.array([number[label] for _, label in content[half]]) for half in ("train", "test")],
    )
    rows = []
    for seen in range(classes_per_task, len(names) + 1, classes_per_task):
        counted = TfidfVectorizer(sublinear_tf=True, use_idf=False)
        words = counted.fit_transform([text for text, label in zip(train, of_train, strict=True) if label < seen])
        labels = of_train[of_train < seen]
        means = np.stack([np.asarray(words[labels == label].mean(axis=0))[0] for label in range(seen)])
        means /= np.linalg.norm(means, axis=1, keepdims=True)
        tested = of_test[of_test < seen]
        asked = counted.transform([text for text, label in zip(test, of_test, strict=True) if label < seen])
        right = (asked @ means.T).argmax(axis=1) == tested
        tasks = range(seen // classes_per_task)
        rows.append(fmean(float(right[tested // classes_per_task == task].mean()) for task in tasks))
    print(f"Acc {100 * rows[-1]:.1f}, AAA {100 * fmean(rows):.1f}")


if __name__ == "__main__":
    typer.run(main)

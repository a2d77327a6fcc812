"""The embedded backbone is a real one: frozen, it tells handwritten digits apart by class means."""

from statistics import fmean

import torch

from lorica.backbones.tiny import load_tiny
from lorica.data.images import ImageReader
from lorica.data.sources import digits
from lorica.data.stream import Stream
from lorica.statistics import ClassMeans


@torch.inference_mode()
def test_frozen_features_transfer_to_digits() -> None:
    """At least 93 % over three splits (raw pixels 90 %, random weights 30 %); one forward pass of 1,797 images each."""
    encoder = load_tiny().eval()
    accuracies = []
    for split_seed in (0, 1, 2):
        stream = Stream(digits(split_seed=split_seed), tasks=1, reader=ImageReader(32))
        train = next(stream.train_all().batches(2000, device=torch.device("cpu")))
        test = next(stream.test(stream.tasks[0]).batches(2000, device=torch.device("cpu")))
        means = ClassMeans(encoder.width, device=torch.device("cpu"))
        means.grow(10)
        means.add(encoder.features(train.inputs), train.labels)
        accuracies.append((means(encoder.features(test.inputs)).argmax(dim=1) == test.labels).float().mean().item())
    assert fmean(accuracies) >= 0.93, accuracies

"""Where samples come from and in which order: sources of labelled images, their transforms, and the stream of tasks."""

from lorica.data.samples import Samples, read_image
from lorica.data.sources import SOURCES, Source, arrays, arrays_file, cifar100, digits, image_folder, load_source
from lorica.data.stream import Split, Stream
from lorica.data.transforms import AUGMENTATIONS

__all__ = [
    "AUGMENTATIONS",
    "SOURCES",
    "Samples",
    "Source",
    "Split",
    "Stream",
    "arrays",
    "arrays_file",
    "cifar100",
    "digits",
    "image_folder",
    "load_source",
    "read_image",
]

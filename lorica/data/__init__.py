"""Where samples come from and in which order: sources, readers of what they have, and the stream of tasks."""

from typing import TYPE_CHECKING

from lorica.lazy import lazily

if TYPE_CHECKING:
    from lorica.data.images import ImageReader, read_image
    from lorica.data.reader import Opened, Reader, find_reader
    from lorica.data.samples import Samples
    from lorica.data.sources import (
        Source,
        arrays,
        arrays_file,
        cifar100,
        digits,
        image_folder,
        load_source,
        source_names,
    )
    from lorica.data.stream import Split, Stream
    from lorica.data.transforms import AUGMENTATIONS

__all__ = [
    "AUGMENTATIONS",
    "ImageReader",
    "Opened",
    "Reader",
    "Samples",
    "Source",
    "Split",
    "Stream",
    "arrays",
    "arrays_file",
    "cifar100",
    "digits",
    "find_reader",
    "image_folder",
    "load_source",
    "read_image",
    "source_names",
]

lazily(
    __name__,
    {
        "lorica.data.images": ["ImageReader", "read_image"],
        "lorica.data.reader": ["Opened", "Reader", "find_reader"],
        "lorica.data.samples": ["Samples"],
        "lorica.data.sources": [
            "Source",
            "arrays",
            "arrays_file",
            "cifar100",
            "digits",
            "image_folder",
            "load_source",
            "source_names",
        ],
        "lorica.data.stream": ["Split", "Stream"],
        "lorica.data.transforms": ["AUGMENTATIONS"],
    },
)

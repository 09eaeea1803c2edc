"""Where data sets with a name come from: addresses, checksums and classes, as torchvision has them.

Fashion-MNIST is taken from its authors' repository: their older address has no https.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RemoteFile:
    """A file and where it is.

    Attributes:
        url: its address.
        md5: its MD5 in hexadecimal digits.
    """

    url: str
    md5: str

    @property
    def name(self) -> str:
        """The file's name: the last part of the address."""
        return self.url.rpartition("/")[2]


@dataclass(frozen=True)
class Source:
    """A data set.

    Attributes:
        files: what is downloaded. For "idx": images and labels for training, then for test.
        kind: how it is read: "idx", "cifar", or "photographs" in a folder for each class.
        classes: the name of each label; for photographs in the order of `folders`.
        folder: the folder inside the archive; for "idx" where torchvision puts the files.
        train: the archive's files with training images.
        test: those with test images.
        labels: the key of the labels in these files.
        folders: for photographs, the name of each class's folder: its WordNet id.
    """

    files: tuple[RemoteFile, ...]
    kind: str
    classes: tuple[str, ...]
    folder: str
    train: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    labels: str = ""
    folders: tuple[str, ...] = ()


FASHION = "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion"
CIFAR = "https://www.cs.toronto.edu/~kriz"
IMAGENETTE = "https://s3.amazonaws.com/fast-ai-imageclas"

FASHION_CLASSES = (
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
CIFAR10_CLASSES = "airplane automobile bird cat deer dog frog horse ship truck"
CIFAR100_CLASSES = """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly
    camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile
    cup dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard lamp
    lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom
    oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine
    possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake
    spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor
    train trout tulip turtle wardrobe whale willow_tree wolf woman worm
"""
IMAGENETTE_CLASSES = {
    "n01440764": "tench",
    "n02102040": "English springer",
    "n02979186": "cassette player",
    "n03000684": "chain saw",
    "n03028079": "church",
    "n03394916": "French horn",
    "n03417042": "garbage truck",
    "n03425413": "gas pump",
    "n03445777": "golf ball",
    "n03888257": "parachute",
}


SOURCES = {
    "fashion-mnist": Source(
        files=(
            RemoteFile(f"{FASHION}/train-images-idx3-ubyte.gz", "8d4fb7e6c68d591d4c3dfef9ec88bf0d"),
            RemoteFile(f"{FASHION}/train-labels-idx1-ubyte.gz", "25c81989df183df01b3e8a0aad5dffbe"),
            RemoteFile(f"{FASHION}/t10k-images-idx3-ubyte.gz", "bef4ecab320f06d8554ea6380940ec79"),
            RemoteFile(f"{FASHION}/t10k-labels-idx1-ubyte.gz", "bb300cfdad3c16e7a12a480ee83cd310"),
        ),
        kind="idx",
        classes=FASHION_CLASSES,
        folder="FashionMNIST/raw",
    ),
    "cifar10": Source(
        files=(RemoteFile(f"{CIFAR}/cifar-10-python.tar.gz", "c58f30108f718f92721af3b95e74349a"),),
        kind="cifar",
        classes=tuple(CIFAR10_CLASSES.split()),
        folder="cifar-10-batches-py",
        train=tuple(f"data_batch_{i}" for i in range(1, 6)),
        test=("test_batch",),
        labels="labels",
    ),
    "cifar100": Source(
        files=(RemoteFile(f"{CIFAR}/cifar-100-python.tar.gz", "eb9058c3a382ffc7106e4002c42a8d85"),),
        kind="cifar",
        classes=tuple(CIFAR100_CLASSES.split()),
        folder="cifar-100-python",
        train=("train",),
        test=("test",),
        labels="fine_labels",
    ),
    "imagenette": Source(
        files=(
            RemoteFile(f"{IMAGENETTE}/imagenette2-160.tgz", "e793b78cc4c9e9a4ccc0c1155377a412"),
        ),
        kind="photographs",
        classes=tuple(IMAGENETTE_CLASSES.values()),
        folder="imagenette2-160",
        folders=tuple(IMAGENETTE_CLASSES),
    ),
}

"""DataConfig: which images, how they are split and varied; checked when it is made."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from objectives.pictures.options import Background, check_pixel_range
from spaces.errors import ConfigError, DataError, printable

DIGITS = "digits"
STREAMED = ("wds/", "tfds/", "hfids/")
_KNOWN = ("torch/", "hfds/", *STREAMED)
TRAIN, TEST = "train", "validation"  # timm's names, and the options' defaults
ClassOrder = Literal["timm", "torchvision"]


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which images, how they are split, and how training images are varied. Names are timm's where timm has one.

    Attributes:
        dataset: name of a data set for timm.data.create_dataset (torch/cifar10, hfds/..., wds/...), or digits; empty for an
            image folder.
        data_dir: image folder: class folders, or train/ and val/ with class folders. With `dataset`: its root.
        train_split: split to train on.
        search_split: split to compare candidates on; by default a part of train_split is held out for it.
        val_split: split for the final report; nothing is selected on it. A folder without one holds out a part of its images.
        search_size: images held out of train_split for the search: a share below 1, or a number.
        least_images: held-out splits (search, test) with fewer images than this are refused.
        holdout: which images are held out: random ones, or the end of the split.
        class_order: order of the class folders, which sets their labels. timm: numbers by value (shape_9 before shape_10),
            upper case like lower case. torchvision: character by character, as its ImageFolder sorts.
        class_map: timm's class map file: one class name a line, in the order of the labels; replaces class_order.
        dataset_download: let the data set download itself.
        batch_size: images per training step.
        eval_batch_size: images per evaluation batch.
        workers: loader processes; by default 0 for data held in memory, else up to 4.
        calibration_size: training images for the statistics of the factors.
        profile_images: how many of the calibration images the divergences of candidates and of single sites are measured on;
            0 for none.
        scale: range of the area of random resized crops.
        crop_padding: for images that already have the model's size: pad by this many pixels and crop at random, instead of
            resizing a random crop.
        hflip: probability of a horizontal flip.
        color_jitter: strength of the colour jitter; 0 for none.
        aa: timm's auto-augment policy, e.g. rand-m9-mstd0.5.
        split_seed: seed of the random hold-out.
        pixel_range: the two pixel values that become black and white, for pictures of more than 8 bits; values outside are
            clamped. By default the whole range of the type: 0 to 65535 for integers, 0 to 1 for floating-point numbers.
        background: colour behind transparent pictures; ignored drops the transparency.
    """

    dataset: str = ""
    data_dir: str | None = None
    train_split: str = TRAIN
    search_split: str | None = None
    val_split: str = TEST
    search_size: float = 0.1
    least_images: int = 20
    holdout: Literal["random", "end"] = "random"
    class_order: ClassOrder = "timm"
    class_map: str | None = None
    dataset_download: bool = False
    batch_size: int = 128
    eval_batch_size: int = 256
    workers: int | None = None
    calibration_size: int = 1024
    profile_images: int = 512
    scale: tuple[float, float] = (0.6, 1.0)
    crop_padding: int = 0
    hflip: float = 0.5
    color_jitter: float = 0.0
    aa: str | None = None
    split_seed: int = 0
    pixel_range: tuple[float, float] | None = None
    background: Background = "white"

    def __post_init__(self) -> None:
        for name in ("batch_size", "eval_batch_size", "calibration_size", "least_images"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.profile_images < 0:
            raise ConfigError(f"profile_images must be at least 0, got {self.profile_images}")
        if self.dataset not in ("", DIGITS) and not self.dataset.startswith(_KNOWN):
            raise ConfigError(f"dataset must be empty, {DIGITS} or begin with {', '.join(_KNOWN)}: got {self.dataset!r}")
        if self.search_size <= 0:
            raise ConfigError(f"search_size must be positive, got {self.search_size}")
        if self.crop_padding < 0:
            raise ConfigError(f"crop_padding must be at least 0, got {self.crop_padding}")
        for name, allowed in (("holdout", ("random", "end")), ("class_order", get_args(ClassOrder))):
            if getattr(self, name) not in allowed:
                raise ConfigError(f"{name} must be {' or '.join(allowed)}, got {getattr(self, name)!r}")
        if self.dataset and self.class_order != "timm":
            raise ConfigError(f"class_order is for image folders, not for dataset={self.dataset!r}, which has its own")
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ConfigError(f"scale must be two areas 0 < low <= high <= 1, got {list(self.scale)}")
        check_pixel_range(self.pixel_range)


def image_folder(config: DataConfig) -> Path:
    """Where the images are, for options that name no data set.

    Raises:
        DataError: no folder is named, or none is there.
    """
    if config.data_dir is None:
        raise DataError("no images: give --data-dir with an image folder, or --dataset with a timm data set name")
    root = Path(config.data_dir)
    if not root.is_dir():
        raise DataError(f"no folder at {printable(str(root))}")
    return root

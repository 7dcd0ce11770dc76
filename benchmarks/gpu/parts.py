"""The parts by name, in the order in which they are the most use: what each needs, and how long it may take."""

import importlib.util
from dataclasses import dataclass

from gpu.setting import Setting

RECIPES = ("gohsp", "vtp", "losparse", "kumar-hybrid")
SEEDS = (0, 1, 2)


@dataclass(frozen=True, kw_only=True)
class Part:
    """One part: units of work, each in a process of its own.

    Attributes:
        title: for the page.
        units: in order; what is measured is measured once a unit.
        seconds: that a unit is expected to take on an H100 with 16 cores, its process's start included (estimated from the
            arithmetic and the number of kernels, until the page says better). A unit that has less left is not begun.
        limit: seconds after which a unit is stopped.
        at_once: units that share the device where no time is measured.
        tiny: units at the small size; all where it is None.
        packages: that it needs besides the project's own.
        gpu: whether it says nothing on a CPU, and so is run there at the small size alone.
        dense: whether it needs the model that `train` makes.
        images: whether it needs Fashion-MNIST.
    """

    title: str
    units: tuple[str, ...]
    seconds: int
    limit: int
    at_once: int = 1
    tiny: tuple[str, ...] | None = None
    packages: tuple[str, ...] = ()
    gpu: bool = False
    dense: bool = False
    images: bool = False

    def units_of(self, setting: Setting) -> tuple[str, ...]:
        """The units at a size."""
        return self.units if self.tiny is None or not setting.tiny else self.tiny

    def lacks(self, setting: Setting) -> str | None:
        """What it needs and does not have, in words."""
        missing = [name for name in self.packages if importlib.util.find_spec(name) is None]
        if missing:
            return f"{', '.join(missing)} is not installed: make wheels, and bring both folders of wheels/"
        if setting.tiny:
            return "the part train has not made its model" if self.dense and not setting.dense.exists() else None
        if self.gpu and not setting.on_gpu:
            return f"it needs a CUDA device, not {setting.device}"
        if self.dense and not setting.dense.exists():
            return f"{setting.dense} is missing: run the part train, or bring the file"
        if (self.images or self.dense) and not has_images(setting):
            return f"Fashion-MNIST is not in {setting.data}: bring the four *-ubyte.gz of Debian's dataset-fashion-mnist there"
        return None


PARTS: dict[str, Part] = {
    "tests": Part(title="The tests that need a GPU", units=("marked gpu",), seconds=50, limit=150, gpu=True),
    "train": Part(title="The dense model", units=("30 epochs",), seconds=80, limit=240, images=True),
    "memory": Part(title="Out of memory", units=("ViT-S/16",), seconds=45, limit=120, gpu=True),
    "nccl": Part(
        title="A long fine-tune through NCCL, one process", units=("2 epochs",), seconds=45, limit=120, gpu=True, dense=True
    ),
    "throughput": Part(
        title="Throughput of trials", units=("12 %", "50 %", "100 %"), seconds=40, limit=120, gpu=True, tiny=("50 %",)
    ),
    "naive": Part(
        title="The engine beside a naive search, ViT-S/16 at 224 pixels", units=("12 and 50 %",), seconds=200, limit=400,
        gpu=True,
    ),
    "ways": Part(
        title="Ways to take a step",
        units=("amp bf16 fused padded pinned resident", "graph amp+fused+graph", "compile amp+compile"),
        seconds=60, limit=150, gpu=True, tiny=("fused",),
    ),
    "amp": Part(
        title="Mixed precision against float32", units=("12 allocations",), seconds=90, limit=240, gpu=True, dense=True
    ),
    "workers": Part(
        title="Workers on one GPU", units=("1", "2", "4"), seconds=50, limit=150, gpu=True, dense=True, packages=("ray",),
        tiny=("1", "2"),
    ),
    "latency": Part(
        title="Latencies, eager and compiled", units=("batch 1, table", "batch 64, table", "batch 1, compiled"),
        seconds=60, limit=150, gpu=True, tiny=("batch 1, table",),
    ),
    "recipes": Part(
        title="Recipes with 20 epochs after the cut",
        units=tuple(f"{name}, seed {seed}" for seed in SEEDS for name in ("dense", "engine", *RECIPES)),
        tiny=("dense, seed 0", "engine, seed 0", "gohsp, seed 0"), seconds=140, limit=300, at_once=3, dense=True,
    ),
    "search": Part(
        title="Searches for 50 and 30 % of the MACs", units=tuple(f"seed {seed}" for seed in SEEDS), tiny=("seed 0",),
        seconds=180, limit=400, at_once=3, dense=True,
    ),
}  # fmt: skip


def has_images(setting: Setting) -> bool:
    """Whether Fashion-MNIST is there, packed or unpacked."""
    folders = (setting.data, setting.data / "FashionMNIST" / "raw")
    return any(len(list(folder.glob("*-ubyte*"))) >= 4 for folder in folders)

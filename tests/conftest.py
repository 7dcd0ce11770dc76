"""Small models for the unit tests, whose weights are large enough that attention is far from uniform; images and runs."""

import signal
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest
import timm
import torch
from local_digits import DATA, evaluator_of, limits_of
from local_digits import MODEL as DIGITS_MODEL
from local_images import SIZE, fill
from local_runs import DIGITS, MODEL, Fails, model
from local_samples import mixed
from local_searches import close_opened
from safetensors.torch import save_file
from torch import Tensor, nn

import run_search
from objectives.evaluator import Evaluator
from objectives.recipes.registry import open_workbench
from objectives.recipes.workbench import Workbench
from objectives.training.config import FinetuneConfig
from spaces.models.create import create_model

if TYPE_CHECKING:
    from playwright.sync_api import Browser

# A shell's background jobs (`make test &`) ignore Ctrl-C, and so would the processes that tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)

# The same examples in every process and on every machine, and no folder of those that failed.
hypothesis.settings.register_profile("tests", derandomize=True, max_examples=50, deadline=None, database=None)
hypothesis.settings.load_profile("tests")

# Files that take long, the longest first: begun last, one of them would be waited for by the other workers.
EARLY = (
    "chaos", "runners", "exports", "handover", "launch", "launch_ends", "distributed", "server", "formats", "tokens_exports",
)  # fmt: skip

TINY = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 5}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    names = [f"test_{name}" for name in EARLY]
    items.sort(key=lambda item: names.index(item.path.stem) if item.path.stem in names else len(names))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from local_lanes import Lanes  # a machine that runs the tests for a GPU may have no pytest-xdist

    return Lanes(config, log) if config.getvalue("dist") == "loadfile" else None


def tiny_vit(name: str = "vit_tiny_patch16_224", **options: Any) -> nn.Module:
    """A timm model of two blocks, 32 wide, with random weights of visible effect."""
    torch.manual_seed(0)
    model: nn.Module = timm.create_model(name, **{**TINY, **options}).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if parameter.ndim >= 2:
                parameter.normal_(std=0.2)
            elif "norm" not in key:
                parameter.normal_(mean=1.0 if "gamma" in key or ".ls" in key else 0.0, std=0.2)
    return model


@pytest.fixture(scope="session")
def vit() -> nn.Module:
    return tiny_vit()


@pytest.fixture(scope="session")
def images() -> Tensor:
    """64 images with structure: every pixel depends on a few hidden factors."""
    generator = torch.Generator().manual_seed(1)
    basis = torch.randn(12, 3 * 16 * 16, generator=generator)
    noise = 0.1 * torch.randn(64, 3 * 16 * 16, generator=generator)
    return (torch.randn(64, 12, generator=generator) @ basis / 3 + noise).reshape(64, 3, 16, 16)


@pytest.fixture
def samples() -> Tensor:
    """4,000 correlated inputs of 24 dimensions, centred."""
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(24, 24, generator=generator, dtype=torch.float64) * torch.logspace(0, -1, 24, dtype=torch.float64)
    return mixed(mix, 4000, generator)


@pytest.fixture
def weight() -> Tensor:
    """Of a layer that reads `samples`."""
    return torch.randn(16, 24, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.fixture(scope="session")
def make_vit() -> Callable[..., nn.Module]:
    return tiny_vit


@pytest.fixture(scope="session")
def split_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train/ with 20 + 20 images, val/ with 5 + 5."""
    root = tmp_path_factory.mktemp("split")
    fill(root / "train", {"cat": range(20), "dog": range(20, 40)})
    fill(root / "val", {"cat": range(100, 105), "dog": range(105, 110)})
    return root


@pytest.fixture(scope="session")
def idx_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 images to train (0..29) and 6 to test (200..205), as torchvision keeps Fashion-MNIST."""
    root = tmp_path_factory.mktemp("idx")
    raw = root / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for prefix, numbers in (("train", range(30)), ("t10k", range(200, 206))):
        pixels = b"".join(bytes([number]) * SIZE * SIZE for number in numbers)
        labels = bytes(number % 10 for number in numbers)
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(struct.pack(">IIII", 2051, len(numbers), SIZE, SIZE) + pixels)
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 2049, len(numbers)) + labels)
    return root


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str]) -> Fails:
    """Run a command that must fail; its only line on stderr."""

    def run(*arguments: str | Path) -> str:
        capsys.readouterr()
        assert run_search.main([str(argument) for argument in arguments]) == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1, lines
        assert lines[0].startswith("error: ")
        return lines[0]

    return run


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "dense.safetensors"
    save_file(model().state_dict(), path)
    return path


@pytest.fixture(scope="session")
def finished(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two trials: the dense model, and a uniform allocation of about half of its MACs."""
    directory = tmp_path_factory.mktemp("runs") / "finished"
    assert run_search.main(["launch", *MODEL, "--checkpoint", str(checkpoint), *DIGITS, "--output", str(directory)]) == 0
    return directory


@pytest.fixture
def launch(checkpoint: Path, tmp_path: Path, fails: Fails) -> Fails:
    """The line that a launch with further arguments ends with; no run may come of it."""

    def run(*arguments: str | Path) -> str:
        output = tmp_path / "run"
        line = fails("launch", *MODEL, "--checkpoint", checkpoint, *DIGITS, "--output", output, *arguments)
        assert not (output / "study.journal").exists()
        assert not (output / "config.yaml").exists()
        return line

    return run


@pytest.fixture(scope="session")
def evaluator(tmp_path_factory: pytest.TempPathFactory) -> Evaluator:
    """For the tests of recipes: multiples of 1, so that every budget can be met, and weights large enough that heads differ."""
    torch.manual_seed(0)
    model = create_model(DIGITS_MODEL)
    with torch.no_grad():
        for parameter in model.blocks.parameters():  # type: ignore[union-attr]
            if parameter.ndim == 2:
                parameter.normal_(std=0.15)
    data = replace(DATA, batch_size=16, calibration_size=64, search_size=64)
    finetune = FinetuneConfig(steps=5, lr=5e-4, recipe_share=0.5)
    return evaluator_of(model, tmp_path_factory.mktemp("runs"), data=data, finetune=finetune, multiple=1)


@pytest.fixture
def steps(evaluator: Evaluator) -> Iterator[Callable[[int], Evaluator]]:
    """The same evaluator with another number of steps."""
    before = evaluator.dense.objective

    def change(count: int) -> Evaluator:
        evaluator.dense.objective = replace(before, finetune=FinetuneConfig(steps=count, lr=5e-4, recipe_share=0.5))
        return evaluator

    yield change
    evaluator.dense.objective = before


@pytest.fixture
def bench(evaluator: Evaluator) -> Callable[[str], Workbench]:
    return lambda name: open_workbench(evaluator.dense, name, limits_of(evaluator.dense, macs=0.5), seed=0)


@pytest.fixture(scope="session")
def digits(evaluator: Evaluator) -> Tensor:
    """The images of its search split."""
    return next(evaluator.dense.data.evaluation("search"))[0]


@pytest.fixture(scope="module")
def chromium() -> Iterator["Browser"]:
    from local_browser import started  # a machine that runs the tests for a GPU may have no playwright

    with started() as browser:
        yield browser


@pytest.fixture(scope="session", autouse=True)
def _few_rounds() -> Iterator[None]:
    """No test asks how exact the times in a report are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("objectives.deploy.folder.TIMED_SECONDS", 0.01)
        yield


@pytest.fixture(scope="session", autouse=True)
def _no_pictures() -> Iterator[None]:
    """Drawing them takes a third of a short search; what they show is tested in test_report."""

    def touch(paths: Sequence[Path], *shown: object) -> None:
        for path in paths:
            path.write_bytes(b"a picture")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("search.report.front_image.write_pictures", touch)
        yield


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _close_studies() -> Iterator[None]:
    yield
    close_opened()

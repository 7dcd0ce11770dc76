"""One small model for the unit tests; its weights are large enough that attention is far from uniform."""

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from local_images import SIZE, fill
from local_runs import DIGITS, MODEL, Fails, model
from safetensors.torch import save_file
from torch import Tensor, nn

import run_search

TINY = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 5}


def tiny_vit(name: str = "vit_tiny_patch16_224", **options: Any) -> nn.Module:
    """A timm model of two blocks, 32 wide, with random weights of visible effect."""
    torch.manual_seed(0)
    model = timm.create_model(name, **{**TINY, **options}).eval()
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


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)

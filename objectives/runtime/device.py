"""Where models are trained and measured."""

import platform

import torch

from spaces.errors import ConfigError


def resolve_device(name: str) -> torch.device:
    """The device called `name`; auto is CUDA if there is one, else Apple's GPU, else the CPU.

    Raises:
        ConfigError: the device does not exist here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device {name!r} is not available here: {str(error).splitlines()[0]}") from error
    return device


def name_of(device: torch.device) -> str:
    """Where a figure was measured: host, device, and the name of the hardware."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return f"{platform.node()} {device} ({name})"


def half_type(device: torch.device) -> torch.dtype:
    """What mixed precision computes in: bfloat16 where the device has it, else float16."""
    return torch.float16 if device.type == "cuda" and not torch.cuda.is_bf16_supported() else torch.bfloat16

"""The process of one unit: measures, and writes a row after every measurement. Started by `gpu.driver`."""

import importlib
import os
import platform
import sys
import time
import traceback
from pathlib import Path

import timm
import torch

from gpu.rows import DONE, END, FAILED, Row, append, measured, of, read
from gpu.setting import Setting

MODULES = {"tests": "marked"}  # a part's module has its name, but for these


def main(part: str, unit: str, text: str) -> None:
    """Measure what is not known of a unit yet. Where that fails, the reason is in a row, and with its traceback on stderr."""
    setting, start = Setting.load(text), time.monotonic()
    machine = machine_of(setting)

    def write(what: str, figures: dict[str, object]) -> None:
        device, tiny = setting.device, setting.tiny
        append(setting.rows, Row(part=part, unit=unit, what=what, figures=figures, machine=machine, device=device, tiny=tiny))
        print(f"{part} | {unit} | {what}: {figures}", flush=True)

    known = measured(of(read(setting.rows), setting.device, setting.tiny), part, unit)
    try:
        module = importlib.import_module(f"gpu.measures.{MODULES.get(part, part)}")
        for what, figures in module.measure(unit, setting, known):
            write(what, figures)
    except Exception as error:
        traceback.print_exc()
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        write(END, {"state": FAILED, "reason": reason, "seconds": round(time.monotonic() - start, 1)})
    else:
        write(END, {"state": DONE, "reason": "", "seconds": round(time.monotonic() - start, 1)})


def machine_of(setting: Setting) -> dict[str, str]:
    """Device and versions."""
    name = torch.cuda.get_device_name(setting.device) if setting.on_gpu else platform.processor() or platform.machine()
    cuda = torch.version.cuda if setting.on_gpu else None
    versions = {"Python": platform.python_version(), "torch": torch.__version__, "timm": timm.__version__}
    return {"device": name, "cores": str(os.cpu_count()), **versions, **({"CUDA": cuda} if cuda else {})}


if __name__ == "__main__":
    os.chdir(Path(__file__).parents[2])
    main(*sys.argv[1:])

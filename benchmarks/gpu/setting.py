"""Where and at which size everything is measured: a value that every unit's process is given."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Where and at which size everything is measured.

    Attributes:
        device: as torch names it.
        tiny: models and lengths of seconds, which say nothing but that the script runs.
        folder: of the rows, the logs, the dense model and the runs.
        data: folder of Fashion-MNIST, packed (as Debian's package has it) or unpacked (as torchvision has it).
        loaders: processes that read images.
    """

    device: str
    tiny: bool
    folder: Path
    data: Path
    loaders: int

    @property
    def on_gpu(self) -> bool:
        """Whether what needs CUDA can be had."""
        return self.device.startswith("cuda")

    @property
    def rows(self) -> Path:
        """The file of all rows."""
        return self.folder / "rows.jsonl"

    @property
    def dense(self) -> Path:
        """Weights of the Fashion-MNIST model that the part `train` makes."""
        return self.folder / f"dense{'-tiny' if self.tiny else ''}.safetensors"

    def dump(self) -> str:
        """As JSON."""
        return json.dumps({name: str(value) if isinstance(value, Path) else value for name, value in asdict(self).items()})

    @classmethod
    def load(cls, text: str) -> "Setting":
        """Inverse of `dump`."""
        values = json.loads(text)
        return cls(**{**values, "folder": Path(values["folder"]), "data": Path(values["data"])})

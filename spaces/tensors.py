"""Files of tensors, written so that a reader sees the old one or the new one, never a half."""

import errno
import os
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from spaces.errors import code_in, first_line
from spaces.files import replacing


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write tensors atomically as safetensors, readable for whoever the umask allows (the library's own are private).

    Raises:
        OSError: the disk is full, or cannot be written to.
    """
    with replacing(path) as partial:
        try:
            save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, partial, metadata)
        except SafetensorError as error:
            code = code_in(str(error))
            raise OSError(code or errno.EIO, os.strerror(code) if code else first_line(error), str(path)) from error
        mask = os.umask(0)
        os.umask(mask)
        partial.chmod(0o666 & ~mask)

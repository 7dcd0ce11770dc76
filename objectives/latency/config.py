"""LatencyConfig: how latency is measured where it is a target or an objective."""

from dataclasses import dataclass

from spaces.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How a model is run while it is timed.

    Attributes:
        batch_size: images in a call.
        amp: mixed precision, in `objectives.runtime.device.half_type`; else in the type of the weights.
        compiled: by torch.compile, for this shape.
    """

    batch_size: int = 1
    amp: bool = False
    compiled: bool = False

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ConfigError(f"the batch size of a latency must be at least 1, got {self.batch_size}")

    @property
    def text(self) -> str:
        """For tables: `batch 1, fp32, eager`."""
        return f"batch {self.batch_size}, {'AMP' if self.amp else 'fp32'}, {'compiled' if self.compiled else 'eager'}"


@dataclass(frozen=True, kw_only=True)
class LatencyConfig:
    """How latency is measured where it is a target or an objective.

    Attributes:
        latency_batch_size: images in a call; the latency is that of the call.
        latency_amp: in mixed precision.
        latency_seconds: spent on every size that is measured, at a time: twice, and up to eight times where that differs.
    """

    latency_batch_size: int = 1
    latency_amp: bool = False
    latency_seconds: float = 0.25

    def __post_init__(self) -> None:
        if self.latency_batch_size < 1:
            raise ConfigError(f"latency_batch_size must be at least 1, got {self.latency_batch_size}")
        if not 0 < self.latency_seconds <= 60:
            raise ConfigError(f"latency_seconds must be above 0 and at most 60, got {self.latency_seconds}")

    @property
    def setting(self) -> Setting:
        """How the models are run: eagerly, since every size that is measured would have to be compiled."""
        return Setting(batch_size=self.latency_batch_size, amp=self.latency_amp)

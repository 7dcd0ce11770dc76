"""Everything about one dense model that candidates share, computed once; a candidate is then built by slicing."""

import copy
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from spaces.allocation import Allocation
from spaces.errors import CheckpointError
from spaces.operators.base import Tensors
from spaces.operators.registry import OPERATORS, Variants, input_of, select, variant_of
from spaces.sites import Site, Space
from spaces.statistics import collect
from spaces.tensors import save_tensors
from spaces.vit import resize

_FORMAT = "3"


class Factors:
    """Factors of one dense model for one space.

    Attributes:
        dense: the dense model, on the CPU, in evaluation mode. Not to be changed.
        space: what `build` accepts.
        tensors: <site>.<name of a factor> -> factor.
    """

    def __init__(self, dense: nn.Module, space: Space, tensors: Tensors) -> None:
        self.dense = dense
        self.space = space
        self.tensors = tensors

    @classmethod
    def compute(
        cls,
        dense: nn.Module,
        space: Space,
        batches: Iterable[Tensor],
        device: torch.device | str = "cpu",
        progress: Callable[[int, int], None] = lambda done, total: None,
        variants: Variants | None = None,
        scores: Mapping[str, Tensor] | None = None,
        gradients: bool = True,
        sites: Sequence[Site] | None = None,
    ) -> "Factors":
        """Factors from one calibration pass; none is made where no variant needs it.

        Args:
            dense: the dense model; left on the CPU in evaluation mode.
            space: a space of this model.
            batches: calibration images, [B, C, H, W], normalised for the model; no labels.
            device: where the pass and the decompositions run.
            progress: called with (sites done, sites in all).
            variants: kind of site -> one of its variants (`operators.registry.KINDS`); the engine's own where none is given.
            scores: name of a site -> importance of what it may keep (`operators.registry.select`): such a site is sliced by
                these scores, with no correction.
            gradients: weigh tokens and outputs by what they cost at the model's output; without, as in most papers, every
                layer is approximated for itself.
            sites: those whose factors are computed, so that they can be made smaller; all of the space where it is None.

        Raises:
            DataError: no image, or activations that are not finite.
        """
        device = torch.device(device)
        scores, sites = scores or {}, space.sites if sites is None else sites
        chosen = {site: variant_of(site.kind, variants or {}) for site in sites if site.name not in scores}
        inputs = {site: input_of(dense, site) for site, variant in chosen.items() if variant.needs}
        moments = collect(
            dense.to(device),
            dict.fromkeys(inputs.values()),
            batches,
            heads={name: _heads(dense, site) for site, name in inputs.items() if "heads" in chosen[site].needs},
            salient={name: site.dense for site, name in inputs.items() if "saliency" in chosen[site].needs},
            gradients=gradients,
        )
        dense.to("cpu").eval()
        tensors: Tensors = {}
        for done, site in enumerate(sites):
            progress(done, len(sites))
            if site.name in scores:
                found = select(dense, site, scores[site.name])
            else:
                found = chosen[site].compute(dense, site, moments.get(inputs.get(site, "")), device)
            tensors.update({f"{site.name}.{key}": value.detach().float().cpu().contiguous() for key, value in found.items()})
        progress(len(sites), len(sites))
        return cls(dense, space, tensors)

    def build(self, allocation: Allocation) -> nn.Module:
        """A new model of this allocation, with closed-form weights, on the CPU in evaluation mode.

        The identity gives back a copy of the dense model.

        Raises:
            AllocationError: the space does not offer this allocation.
        """
        model = copy.deepcopy(self.dense)
        resize(model, self.space, allocation)
        with torch.no_grad():
            for branch, operator in self.space.moved(allocation):
                fill = OPERATORS[operator.name].fill
                assert fill is not None, f"{operator.name} is filled by the recipe that trains it"
                factors = {site.part: self.of(site) for site in operator.sites}
                fill(self.dense, model, branch, operator.sizes(allocation), factors)
        return model.eval()

    def error(self, site: Site) -> dict[int, float]:
        """Choice -> expected cost of this size after the correction, other sites dense; 0 at the dense size.

        In nats of divergence from the dense model to second order (squared error of the features in a model without
        classes), tokens taken as independent: an estimate, made to compare sites rather than to be read as it is. For sites
        that were sliced without a correction, and without gradients, the unit is the layer's own.
        """
        tail = self.tensors[f"{site.name}.error"]
        scale = (len(tail) - 1) // site.dense  # value/output counts components of all heads
        return {size: 0.0 if size == site.dense else float(tail[size * scale]) for size in site.choices}

    def total(self, site: Site) -> float:
        """Expected squared error of keeping nothing at this site, in the unit of `error`."""
        return float(self.tensors[f"{site.name}.error"][0])

    def save(self, path: Path, fingerprint: str) -> None:
        """Write the tensors atomically as safetensors."""
        save_tensors(path, self.tensors, {"format": _FORMAT, "fingerprint": fingerprint, "content": _digest(self.tensors)})

    @classmethod
    def load(cls, path: Path, dense: nn.Module, space: Space, fingerprint: str) -> "Factors":
        """Inverse of `save`.

        Raises:
            CheckpointError: the file is unreadable, or was computed for something else than `fingerprint`.
        """
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"factors {path} cannot be read ({error}): delete the file to compute them again") from error
        if metadata.get("format") != _FORMAT or metadata.get("fingerprint") != fingerprint:
            raise CheckpointError(
                f"factors {path} belong to another model, space or calibration set: delete the file to compute them again"
            )
        if metadata.get("content") != _digest(tensors):
            raise CheckpointError(f"factors {path} are damaged: delete the file to compute them again")
        return cls(dense.cpu().eval(), space, tensors)

    def of(self, site: Site) -> Tensors:
        """Factors of one site, by their names."""
        prefix = f"{site.name}."
        return {key.removeprefix(prefix): value for key, value in self.tensors.items() if key.startswith(prefix)}


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """Hash of names, shapes and values; 16 hex digits."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(repr((name, tuple(tensor.shape), tensor.dtype)).encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def _heads(dense: nn.Module, site: Site) -> int:
    return dense.get_submodule(site.branch).num_heads  # type: ignore[return-value]


def fingerprint(dense: nn.Module, *conditions: object) -> str:
    """Hash of the weights and of whatever else the factors depend on (space, calibration images); 16 hex digits."""
    digest = hashlib.sha256(repr((_FORMAT, *conditions)).encode())
    for name, tensor in dense.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]

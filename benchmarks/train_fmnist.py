"""Train the dense model of the Fashion-MNIST benchmark, for whoever does not have its checkpoint.

    python benchmarks/fashion_mnist.py
    python benchmarks/train_fmnist.py data/fmnist_vit.safetensors     # 14 epochs; some 20 minutes on 2 cores
    python benchmarks/train_fmnist.py data/fmnist_vit_p4.safetensors --patch-size 4 --epochs 16 --amp   # 49 patches

The first 55,000 training images train; the last 5,000 are the search split, the test split is only reported. The state after
every epoch lies beside the weights until they are written: what was interrupted goes on from there. A JSON file beside the
weights has the model's arguments, its normalisation and its accuracies.
"""

import argparse
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from fashion_mnist import OPTIONS
from rich.progress import Progress
from timm.layers import set_fused_attn
from torch import Tensor, nn

from objectives.data.loaders import Data
from objectives.error import evaluate
from objectives.runtime.seeding import seed_everything
from objectives.training.batch import labelled
from objectives.training.config import FinetuneConfig
from objectives.training.finetune import finetune
from objectives.training.state import load_state, read_note, save_state
from search.config import SearchConfig
from spaces.files import write_json
from spaces.models.create import create_model, preprocessing
from spaces.tensors import save_tensors

_TRAINING_IMAGES = 55_000
_BATCH = 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--epochs", type=float, default=14)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--patch-size", type=int, default=OPTIONS["model_kwargs"]["patch_size"], help="7: 16 patches; 4: 49")
    parser.add_argument("--amp", action="store_true", help="bfloat16 where the device has it")
    arguments = parser.parse_args()
    set_fused_attn(False)  # on a CPU the backward pass of torch's kernel takes longer than all else together
    shape = {**OPTIONS["model_kwargs"], "patch_size": arguments.patch_size}
    config = SearchConfig.from_flat({**OPTIONS, "model_kwargs": shape, "batch_size": _BATCH})
    steps = round(arguments.epochs * _TRAINING_IMAGES / _BATCH)
    finetune_config = FinetuneConfig(steps=steps, lr=1.5e-3, amp="on" if arguments.amp else "off")
    train(config, finetune_config, arguments.output, arguments.seed)
    trained = replace(config.model, checkpoint=str(arguments.output))
    model = create_model(trained)
    data = Data(config.data, preprocessing(model, trained))
    about: dict[str, Any] = {
        "architecture": "timm.models.VisionTransformer",
        "model_args": {**shape, "num_classes": OPTIONS["num_classes"]},
        "normalize": {"mean": OPTIONS["mean"], "std": OPTIONS["std"]},
        "training": f"{arguments.epochs:g} epochs, {finetune_config}, seed {arguments.seed}, torch {torch.__version__}",
    }
    for split in ("search", "test"):
        found = evaluate(model, data.evaluation(split))
        about[f"top1_{split}"] = 1 - found.error
        print(f"{split}: top-1 {1 - found.error:.2%} of {found.count} images")
    write_json(arguments.output.with_suffix(".json"), about)


def train(config: SearchConfig, finetune_config: FinetuneConfig, output: Path, seed: int) -> None:
    """Train a model from its random initialisation on the true labels and write its weights; nothing is done where they are.

    The position embedding starts as large as the patches' embeddings: from timm's 0.02 a small model sees a bag of
    patches for its first thousand steps.
    """
    if output.exists():
        return
    seed_everything(seed)
    model = create_model(config.model)
    nn.init.normal_(model.get_parameter("pos_embed"), std=0.5)
    data = Data(config.data, preprocessing(model, config.model))
    state = _State(output.with_suffix(".state"), repr((config.model, config.data, finetune_config, seed)))
    batches = labelled(_left(data, finetune_config.steps, seed, state.taken))
    with Progress() as progress:
        task = progress.add_task("training", total=finetune_config.steps)
        for step in finetune(model, batches, finetune_config, resume=state.resume):
            progress.update(task, completed=step.step)
            if step.step % data.epoch_steps == 0:
                state.save(step.step)
                print(f"epoch {step.step // data.epoch_steps}: loss {step.loss:.3f}", flush=True)
    save_tensors(output, model.state_dict())
    state.path.unlink(missing_ok=True)


def _left(data: Data, steps: int, seed: int, taken: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Training batches after the first ones."""
    return islice(data.training(steps, seed), taken, None)


class _State:
    """What a training goes on from.

    Args:
        path: its file.
        mark: of all that it depends on.

    Attributes:
        taken: steps before it.
    """

    def __init__(self, path: Path, mark: str) -> None:
        self.path, self._mark = path, mark
        self.taken: int = read_note(path, mark) or 0

    def resume(self, model: nn.Module, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler) -> int:
        """As `finetune` asks for it."""
        self._model, self._optimizer = model, optimizer
        if self.taken:
            state = load_state(self.path)
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
        return self.taken

    def save(self, taken: int) -> None:
        """Keep where the training is."""
        state = {"model": self._model.state_dict(), "optimizer": self._optimizer.state_dict()}
        save_state(self.path, self._mark, state, taken)


if __name__ == "__main__":
    main()

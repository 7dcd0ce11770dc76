"""The command line's arguments: one flag per option of SearchConfig, with the help that its owner's docstring gives."""

import argparse
import difflib
from collections.abc import Callable
from typing import Any, Literal, NoReturn, Union, get_args, get_origin, get_type_hints

from objectives.data.config import DataConfig
from objectives.deploy.config import FILES, Dtype
from objectives.training.config import TrainingConfig
from search.config import OWNERS, StudyConfig, option_help, option_types
from search.evidence.options import Preference
from search.runners.resources import MachineConfig
from search.terminal.key_values import KeyValues
from spaces.errors import ConfigError
from spaces.models.config import ModelConfig

_TITLES = {
    "ModelConfig": "model",
    "DataConfig": "images",
    "FinetuneConfig": "short fine-tune of every candidate",
    "StudyConfig": "search",
    "LatencyConfig": "latency, where it is a target or an objective",
    "MachineConfig": "machines",
}

# What inspect takes of the options of launch; the data options are for --profile and --front.
_INSPECTED: dict[type[Any], tuple[str, ...]] = {
    ModelConfig: tuple(name for name in get_type_hints(ModelConfig) if name != "model"),
    DataConfig: tuple(get_type_hints(DataConfig)),
    StudyConfig: ("space", "tokens", "drop", "multiple", "target", "objectives", "output"),
    MachineConfig: ("device", "threads"),
}

_EPILOG = """\
examples:
  run_search.py launch
      the built-in demo: trains a small model on the digits, searches, needs no network
  run_search.py inspect deit_small_patch16_224
      what can be made smaller, and how far; with --front and images, what budgets cost before any search
  run_search.py launch --model deit_small_patch16_224 --pretrained --data-dir imagenet --target flops=50% --trials 200
  run_search.py launch --model vit_base_patch16_224 --checkpoint mine.safetensors --data-dir my_images --target params=20M
  run_search.py launch --model local-dir:my_model --data-dir my_images --target flops=50%
      a folder that timm.models.save_for_hf wrote: architecture, weights and preprocessing come from it
  run_search.py launch --recipe gohsp --target flops=50% --model deit_small_patch16_224 --pretrained --data-dir imagenet
      a published system alone; --baselines kumar-hybrid vtp gohsp losparse uniform runs them beside a search
  run_search.py browse runs/deit_small_patch16_224-contract
      its page, live; of several runs at once; with --text as a table
  run_search.py export runs/deit_small_patch16_224-contract --target flops=50%
  run_search.py export runs/deit_small_patch16_224-contract --target flops=50% --finetune-epochs 30 --gpus 8
  run_search.py measure runs/deit_small_patch16_224-contract/export/flops50
  run_search.py predict runs/deit_small_patch16_224-contract/export/flops50 image.jpg
  run_search.py audit  runs/deit_small_patch16_224-contract --points 8

"flops" means multiply-accumulates (MACs), as in the literature; targets bound what is kept.
"""


class _Parser(argparse.ArgumentParser):
    """Reports a wrong argument as every other wrong input is reported: by one line."""

    def error(self, message: str) -> NoReturn:
        unknown = message.partition("unrecognized arguments: ")[2].split(maxsplit=1)[:1]
        near = difflib.get_close_matches(unknown[0], [_flag(name) for name in option_types()], n=3) if unknown else []
        hint = f"did you mean {', '.join(near)}?" if near else f"see {self.prog} --help"
        raise ConfigError(f"{message}: {hint}")


def build_parser() -> argparse.ArgumentParser:
    """The parser of run_search.py; it raises ConfigError for a wrong argument."""
    parser = _Parser(
        prog="run_search.py",
        description="Searches per-layer ranks and prune ratios of a timm vision transformer: the front of cost against error.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    launch = commands.add_parser(
        "launch",
        help="start a search, or continue the one in --output",
        description="Start a search, or continue the one in --output (its options need not be repeated). "
        "Ctrl-C once finishes the trials that run, twice stops at once; what has finished is kept.",
    )
    launch.add_argument("--config", metavar="YAML", help="file of options by these names; flags win")
    for owner in OWNERS:
        _add_options(launch.add_argument_group(_TITLES[owner.__name__]), owner)
    inspect = commands.add_parser("inspect", help="what of a model can be made smaller, to which sizes, and what not and why")
    inspect.add_argument(
        "model", help="timm model name, local-dir:FOLDER, hf-hub:ORG/NAME, or a run directory, whose options then apply"
    )
    shown = inspect.add_mutually_exclusive_group()
    shown.add_argument(
        "--profile",
        action="store_true",
        help="what every size of every site costs, in closed form and measured on calibration images: a table and a heat map",
    )
    shown.add_argument(
        "--front",
        action="store_true",
        help="what budgets cost before anything is fine-tuned: a dozen shares of the cost, measured as built. Writes a run "
        "directory without trials, which launch continues",
    )
    for owner, names in _INSPECTED.items():
        _add_options(inspect.add_argument_group(_TITLES[owner.__name__]), owner, only=names)
    _add_browse(commands)
    audit = commands.add_parser(
        "audit",
        help="fine-tune points of the front for longer: does the short fine-tune rank them as a long one does?",
        description="Fine-tune points of the front, and trials of similar cost, for longer and with other seeds, and report "
        "Kendall's tau between the orders. Goes on where it was.",
    )
    audit.add_argument("run", help="run directory")
    audit.add_argument("--points", type=int, metavar="N", default=8, help="trials along the front, and as many of similar cost")
    audit.add_argument("--factor", type=int, metavar="N", default=10, help="so many times the steps of the search")
    audit.add_argument("--seeds", type=int, metavar="N", default=2, help="long fine-tunes of every trial")
    export = commands.add_parser(
        "export",
        help="write points of a run as model folders, checked after reload",
        description="Write points of a run, each as a folder that loads by itself: RUN/export/flops50, trial37, ... What is "
        "there, whole and of the same point, stays as it is. Works while the search runs.",
    )
    export.add_argument("run", help="run directory")
    _add_points(export.add_argument_group("points"))
    export.add_argument(
        "--format",
        nargs="+",
        default=["safetensors"],
        metavar="FORMAT",
        help="safetensors with config.json (always written), onnx, pt2 (torch.export); commas or several words",
    )
    export.add_argument("--dtype", choices=get_args(Dtype), default="fp32", help="of the weights (default: %(default)s)")
    _add_training(export)
    measure = commands.add_parser(
        "measure",
        help="time an exported model beside the dense one",
        description="Time the model of an exported folder and the dense model in turns: float32 and mixed precision, eager and "
        "compiled. Random images, random dense weights; nothing else should run on the device.",
    )
    measure.add_argument("folder", help="written by export")
    measure.add_argument("--batch-sizes", type=int, nargs="+", metavar="N", default=[1, 32], help="default: 1 32")
    measure.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, mps; by default a GPU if there is one")
    measure.add_argument("--threads", type=int, metavar="N", help="CPU threads; by default all cores")
    measure.add_argument("--seconds", type=float, metavar="S", default=2.0, help="for each model and setting; default: 2")
    measure.add_argument(
        "--compile", action=argparse.BooleanOptionalAction, default=True, help="by torch.compile too, which takes a while"
    )
    measure.add_argument(
        "--format",
        nargs="+",
        metavar="FORMAT",
        help="which of the folder's files: safetensors (always), onnx, pt2; by default all but pt2",
    )
    predict = commands.add_parser(
        "predict",
        help="classify images with an exported folder",
        description="Classify images with an exported folder and its preprocessing: the shortest proof that it is whole.",
    )
    predict.add_argument("folder", help="written by export")
    predict.add_argument("images", nargs="+", metavar="IMAGE", help="image files, or folders of them")
    predict.add_argument("--format", choices=tuple(FILES), default="safetensors", help="which file (default: %(default)s)")
    predict.add_argument("--top", type=int, metavar="N", default=5, help="classes to show (default: %(default)s)")
    return parser


def _add_points(group: Any) -> None:
    """Which points are exported, and where."""
    group.add_argument(
        "--target",
        nargs="+",
        action="extend",
        default=[],
        help="the best trial under this budget, e.g. flops=50%% or params=11M, or both joined by a comma; several words are "
        "several points. By default those that were searched for",
    )
    group.add_argument("--trial", type=int, nargs="+", action="extend", default=[], metavar="N", help="these trials")
    group.add_argument("--all-front", action="store_true", help="every trial of the front")
    group.add_argument(
        "--allocation",
        nargs="+",
        action="extend",
        default=[],
        metavar="FILE",
        help="sizes from a JSON file, as the page saves it",
    )
    built = group.add_mutually_exclusive_group()
    built.add_argument(
        "--exact",
        action="store_true",
        help="where the best trial leaves some of its target, build a point on it from the factors, give it the short "
        "fine-tune, and export it if it is not worse",
    )
    built.add_argument(
        "--predicted",
        action="store_true",
        help="on every target, what the profile alone chooses, as built and without a fine-tune: needs no trial (see inspect "
        "--front)",
    )
    group.add_argument(
        "--prefer",
        choices=get_args(Preference),
        help="what decides under a target among trials that cannot be told apart: accurate, the least expected error; cheap, "
        "the least cost (default: what the search was launched with)",
    )
    group.add_argument("--output", metavar="FOLDER", help="where the folders go (default: RUN/export)")
    group.add_argument("--force", action="store_true", help="write them again where they are there")
    group.add_argument("--data-dir", metavar="FOLDER", help="where the run's images are now")


def _add_browse(commands: Any) -> None:
    browse = commands.add_parser(
        "browse",
        help="show runs in the browser, live while they are searched",
        description="Serve the page of a run on this machine until Ctrl-C, live while a search writes the run, which reading "
        "never disturbs; several runs together. report.html in the run directory is the same page as one file.",
    )
    browse.add_argument("runs", nargs="+", metavar="RUN", help="run directory")
    shown = browse.add_mutually_exclusive_group()
    shown.add_argument("--text", action="store_true", help="print the fronts as tables instead")
    shown.add_argument(
        "--dashboard",
        action="store_true",
        help="start optuna-dashboard instead, on a snapshot of the studies (pip install 'vit-compression-search[dashboard]')",
    )
    browse.add_argument("--storage", metavar="URL", help="for --dashboard: of a run's database, with its password")
    browse.add_argument("--port", type=int, default=0, metavar="N", help="default: any free one, which is printed")
    browse.add_argument(
        "--host", default="127.0.0.1", help="default: %(default)s; whoever reaches another one can read the run"
    )
    browse.add_argument("--no-open", action="store_true", help="do not open the page in a browser")


def given_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Option name -> value, of the flags that were given."""
    known = option_types()
    return {name: value for name, value in vars(arguments).items() if name in known and value is not None}


def _add_training(export: argparse.ArgumentParser) -> None:
    _add_options(
        export.add_argument_group("long fine-tune, after which the best epoch by the search split is kept"), TrainingConfig
    )
    group = export.add_argument_group("machines of the long fine-tune, through Ray Train; by default this process alone")
    shared = group.add_mutually_exclusive_group()
    shared.add_argument("--gpus", type=int, metavar="N", help="GPUs that share its batches, a process each")
    shared.add_argument("--parallel", type=int, metavar="N", help="CPU processes that share its batches")
    group.add_argument("--ray-address", metavar="STR", help="of a running Ray cluster: auto, or host:port")


def training_options(arguments: argparse.Namespace) -> tuple[TrainingConfig, MachineConfig]:
    """The long fine-tune that the arguments of export ask for, and the machines that share it.

    Raises:
        ConfigError: a value out of range, or machines for no epochs.
    """
    given = {name: getattr(arguments, name, None) for name in get_type_hints(TrainingConfig)}
    training = TrainingConfig(**{name: value for name, value in given.items() if value is not None})
    processes = arguments.gpus if arguments.gpus is not None else arguments.parallel
    if processes is None and arguments.ray_address is None:
        return training, MachineConfig()
    if not training.finetune_epochs:
        raise ConfigError("--gpus, --parallel and --ray-address are for the long fine-tune: give it --finetune-epochs N")
    for name in ("gpus", "parallel"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise ConfigError(f"--{name} must be at least 1, got {value}")
    gpus = arguments.gpus if arguments.parallel is None else 0
    return training, MachineConfig(gpus=gpus, gpus_per_trial=processes or 1, ray_address=arguments.ray_address)


def _add_options(group: Any, owner: type, only: tuple[str, ...] = ()) -> None:
    texts, defaults = option_help(owner), vars(owner())
    for name, hint in get_type_hints(owner).items():
        if only and name not in only:
            continue
        default = defaults[name]
        shown = (
            ""
            if default in (None, "", (), {})
            else f" (default: {' '.join(map(str, default)) if isinstance(default, tuple) else default})"
        )
        text = (texts[name] + shown).replace("%", "%%")
        group.add_argument(_flag(name), default=None, help=text, **_how(name, hint))


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _how(name: str, hint: Any) -> dict[str, Any]:
    """argparse's way to read a value of this type."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Union or (arguments and type(None) in arguments):
        return _how(name, next(argument for argument in arguments if argument is not type(None)))
    if origin is Literal:
        return {"choices": arguments}
    if origin is tuple:
        if get_origin(arguments[0]) is Literal:
            return {"nargs": "+", "metavar": f"{{{','.join(get_args(arguments[0]))}}}"}
        entry = _or_none(arguments[0]) if Ellipsis in arguments else arguments[0]
        return {"nargs": "+" if Ellipsis in arguments else len(arguments), "type": entry, "metavar": name.upper()}
    if origin is dict:
        return {"nargs": "*", "action": KeyValues, "metavar": "KEY=VALUE"}
    if hint is bool:
        return {"action": argparse.BooleanOptionalAction}
    return {"type": hint, "metavar": hint.__name__.upper()}


def _or_none(kind: type) -> Callable[[str], Any]:
    """Reads an entry of a list that may also be given as none."""

    def read(text: str) -> Any:
        return text if text == "none" else kind(text)

    read.__name__ = kind.__name__  # argparse says "invalid float value"
    return read

import dataclasses
from pathlib import Path

import pytest
import timm

from search.config import OWNERS, SearchConfig, option_help, option_types, read_options
from search.terminal.parser import build_parser, given_options
from spaces.errors import ConfigError
from spaces.models.create import ModelConfig


def test_round_trip_through_yaml(tmp_path: Path) -> None:
    config = SearchConfig.from_flat(
        {"model": "deit_tiny_patch16_224", "model_kwargs": {"img_size": 96}, "target": ["flops=50%"], "lr": 1, "mean": [0.5]}
    )
    config.dump(tmp_path / "config.yaml")
    assert SearchConfig.from_flat(read_options(tmp_path / "config.yaml")) == config
    assert config.finetune.lr == 1.0
    assert config.model.mean == (0.5,)


def test_every_option_has_one_owner_and_a_line_of_help() -> None:
    names = [field.name for owner in OWNERS for field in dataclasses.fields(owner)]
    assert len(names) == len(set(names)) == len(option_types())
    for owner in OWNERS:
        texts = option_help(owner)
        assert set(texts) == {field.name for field in dataclasses.fields(owner)}, owner
        assert all(len(text) > 5 for text in texts.values())


def test_flags_reach_the_configuration() -> None:
    line = "launch --model vit --model-kwargs img_size=28 depth=6 --target flops=50% params=3M --mean 0.2 0.3 0.4 --lr 1e-3"
    config = SearchConfig.from_flat(
        given_options(build_parser().parse_args([*line.split(), "--pretrained", "--scale", "0.5", "0.9"]))
    )
    assert config.model.model_kwargs == {"img_size": 28, "depth": 6}
    assert config.study.target == ("flops=50%", "params=3M")
    assert not config.study.times
    assert config.objective(Path("run")).latency is None
    assert config.model.mean == (0.2, 0.3, 0.4)
    assert (config.finetune.lr, config.model.pretrained, config.data.scale) == (1e-3, True, (0.5, 0.9))


@pytest.mark.parametrize(
    "words",
    [
        "--objectives error,latency",
        "--objectives error flops, latency",
        "--target latency=8ms",
        "--target flops=50% params=3M,Latency=60%",
    ],
)
def test_latency_is_measured_where_it_is_asked_for(words: str) -> None:
    line = f"launch --model vit {words} --latency-batch-size 4 --latency-amp"
    config = SearchConfig.from_flat(given_options(build_parser().parse_args(line.split())))
    assert config.study.times
    found = config.objective(Path("run")).latency
    assert found is not None
    assert (found.setting.batch_size, found.setting.amp) == (4, True)
    if "objectives" in words:
        assert config.study.objectives in (("error", "latency"), ("error", "flops", "latency"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"modle": "x"}, "unknown option 'modle': did you mean model"),
        ({"trials": "many"}, "trials must be of type int, got 'many'"),
        ({"trials": 0}, "trials must be at least 1"),
        ({"pretrained": 1}, "pretrained must be of type bool"),
        ({"space": "contrct"}, "space must be one of contract"),
        ({"sampler": "cma"}, "sampler must be one of additive, tpe, nsga2, gp, random, got 'cma'"),
        ({"objectives": ["flops", "params"]}, "error and at least one cost"),
        ({"objectives": "error,speed"}, "objectives must be one of error, flops, params, latency, got 'speed'"),
        ({"scale": [0.5]}, "scale must have 2 values"),
        ({"lr": "fast"}, "lr must be of type float"),
        ({"lr": -1}, "lr must be positive"),
        ({"band": 1.5}, "band must be between"),
        ({"distillation": 2}, "distillation must be between"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"output": "runs/a\0b"}, r"output must not hold a NUL character, got 'runs/a\\x00b'"),
    ],
)
def test_bad_options_are_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SearchConfig.from_flat(options)


def test_scientific_notation_in_yaml_is_a_number(tmp_path: Path) -> None:
    """YAML 1.1 reads 1e-3 as text."""
    path = tmp_path / "c.yaml"
    path.write_text("lr: 1e-3\n")
    assert SearchConfig.from_flat(read_options(path)).finetune.lr == 1e-3


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("true", True), ("True", True), ("FALSE", False), ("no", False), ("null", None), ("none", None), ("None", None),
        ("~", None),
        ("3", 3), ("-2", -2), ("0.5", 0.5), ("1e-3", 0.001), ("1E5", 1e5), ("5.e-1", 0.5), ("-1.5e+2", -150.0), (".5", 0.5),
        ("16,16", (16, 16)), ("(16,16)", (16, 16)), ("[16, 16]", (16, 16)), ("[[1, 2], [3]]", ((1, 2), (3,))), ("()", ()),
        ("[true, false]", (True, False)), ("(true, false)", (True, False)), ("[1e-3, none]", (0.001, None)),
        ("token", "token"), ("'avg'", "avg"), ('"1"', "1"), ("a=b", "a=b"), ("", ""), ("{a: 1e-3}", {"a": 0.001}),
    ],
)  # fmt: skip
def test_values_of_model_arguments(tmp_path: Path, text: str, value: object) -> None:
    options = given_options(build_parser().parse_args(["launch", "--model", "vit", "--model-kwargs", f"key={text}", "b=1"]))
    config = SearchConfig.from_flat(options)
    assert config.model.model_kwargs == {"key": value, "b": 1}
    assert type(config.model.model_kwargs["key"]) is type(value)
    config.dump(tmp_path / "config.yaml")
    assert SearchConfig.from_flat(read_options(tmp_path / "config.yaml")) == config


@pytest.mark.parametrize("text", ["key=[1, 2", "key=(1", "key='a", "key={", "key", "=3", "a b=3", "key=!!python/object:a.b {}"])
def test_nonsense_in_model_arguments(text: str) -> None:
    with pytest.raises(ConfigError, match=r"is not (understood|KEY=VALUE)"):
        build_parser().parse_args(["launch", "--model-kwargs", text])


def test_an_argument_that_is_given_twice() -> None:
    with pytest.raises(ConfigError, match="depth is given twice"):
        build_parser().parse_args(["launch", "--model-kwargs", "depth=2", "depth=3"])


def test_values_of_model_arguments_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("model_kwargs: {qkv_bias: false, init_values: 1e-5, norm: None, img_size: [16, 16], pool: '1'}\n")
    assert SearchConfig.from_flat(read_options(path)).model.model_kwargs == {
        "qkv_bias": False, "init_values": 1e-5, "norm": None, "img_size": (16, 16), "pool": "1",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 0}, "num_classes must be at least 1, got 0"),
        ({"num_classes": -3}, "num_classes must be at least 1, got -3"),
        ({"std": [0.2, 0, 0.2]}, "std must be .* more than 0, got 0.2, 0.0, 0.2"),
        ({"std": [-0.5]}, "std must be"),
        ({"std": [float("nan")]}, "std must be"),
        ({"mean": [float("nan")]}, "mean must be"),
        ({"mean": [123.7]}, "mean must be of pixel values between 0 and 1, got 123.7"),
        ({"crop_pct": 0}, "crop_pct must be between 0.1 and 1.5, got 0.0"),
        ({"crop_pct": 1e-9}, "crop_pct must be"),
        ({"crop_pct": -1}, "crop_pct must be"),
        ({"crop_pct": float("nan")}, "crop_pct must be"),
        ({"crop_pct": 50}, "crop_pct must be"),
        ({"interpolation": "zoom"}, "interpolation must be one of nearest, bilinear, bicubic, .*, got 'zoom'"),
        ({"crop_mode": "middle"}, "crop_mode must be one of center, squash, border, got 'middle'"),
        ({"model_kwargs": {"num_classes": 3}}, "model_kwargs must not have num_classes: give --num-classes"),
        ({"model_kwargs": {"checkpoint_path": "x"}}, "must not have checkpoint_path: give --checkpoint"),
        ({"model_kwargs": {"device": "meta"}}, "must not have device"),
        ({"model_kwargs": {3: 4}}, "names of arguments, got 3"),
        ({"model_kwargs": {"depth": {1, 2}}}, "model_kwargs depth must be a truth value"),
        ({"model_kwargs": {"drop": float("nan")}}, "model_kwargs drop must be"),
    ],
)
def test_values_that_no_model_has(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SearchConfig.from_flat(options)


def test_the_preprocessing_of_every_model_of_timm_is_allowed() -> None:
    for name in timm.list_pretrained():
        known = timm.models.get_pretrained_cfg(name)
        names = ("mean", "std", "crop_pct", "interpolation", "crop_mode")
        config = ModelConfig(**{option: getattr(known, option) for option in names})
        assert all(getattr(config, option) == getattr(known, option) for option in names), name


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    for command, words in {"": "examples:", "launch": "upper bound on what is kept", "export": "under this budget"}.items():
        with pytest.raises(SystemExit) as stop:
            build_parser().parse_args([*command.split(), "--help"])
        assert stop.value.code == 0
        assert words in " ".join(capsys.readouterr().out.split())


def test_defaults_are_not_shared() -> None:
    """A default dictionary of one configuration must not carry into the next."""
    first, second = SearchConfig(), SearchConfig()
    assert first.model.model_kwargs is not second.model.model_kwargs
    assert not any(isinstance(field.default, list | dict | set) for owner in OWNERS for field in dataclasses.fields(owner))

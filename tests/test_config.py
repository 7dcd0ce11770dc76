import dataclasses
from pathlib import Path

import pytest

from search.cli import build_parser, given_options
from search.config import OWNERS, SearchConfig, option_help, option_types, read_options
from spaces.errors import ConfigError


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

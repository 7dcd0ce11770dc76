"""How many workers of what size follow from what was asked for and what there is."""

from pathlib import Path
from typing import Any

import pytest

from search.config import SearchConfig
from search.run.options import with_stored
from search.runners.resources import MachineConfig, Plan, plan_workers
from spaces.errors import ConfigError

GPUS, CPUS = {"CPU": 32.0, "GPU": 4.0}, {"CPU": 8.0}


def planned(resources: dict[str, float], **options: Any) -> tuple[int, int, float, int, str]:
    """Workers, processes of each, and the GPUs, threads and device of one process."""
    plan = plan_workers(MachineConfig(**options), resources)
    assert isinstance(plan, Plan)
    return plan.workers, plan.processes, plan.gpus, plan.threads, plan.device


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, (4, 1, 1, 8, "cuda")),
        ({"gpus": 2}, (2, 1, 1, 16, "cuda")),
        ({"workers_per_gpu": 2}, (8, 1, 0.5, 4, "cuda")),
        ({"workers_per_gpu": 2, "parallel": 5}, (5, 1, 0.5, 6, "cuda")),
        ({"gpus_per_trial": 2}, (2, 2, 1, 8, "cuda")),
        ({"gpus_per_trial": 3}, (1, 3, 1, 10, "cuda")),  # the fourth GPU is left over
        ({"parallel": 2, "device": "cuda"}, (2, 1, 1, 16, "cuda")),
        ({"threads": 1}, (4, 1, 1, 1, "cuda")),
        ({"gpus": 0}, (1, 1, 0, 32, "cpu")),
        ({"device": "cpu", "parallel": 3}, (3, 1, 0, 10, "cpu")),
    ],
)
def test_workers_on_four_gpus(options: dict[str, Any], expected: tuple[Any, ...]) -> None:
    assert planned(GPUS, **options) == expected


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, (1, 1, 0, 8, "cpu")),
        ({"parallel": 2}, (2, 1, 0, 4, "cpu")),
        ({"parallel": 20}, (20, 1, 0, 1, "cpu")),  # slow, not refused
        ({"gpus_per_trial": 2}, (1, 2, 0, 4, "cpu")),
        ({"gpus_per_trial": 2, "parallel": 2}, (2, 2, 0, 2, "cpu")),
        ({"device": "mps"}, (1, 1, 0, 8, "mps")),
    ],
)
def test_workers_without_gpus(options: dict[str, Any], expected: tuple[Any, ...]) -> None:
    assert planned(CPUS, **options) == expected


@pytest.mark.parametrize(
    ("resources", "options", "words"),
    [
        (GPUS, {"gpus": 5}, "--gpus 5 was asked for, but there are 4"),
        (CPUS, {"gpus": 1}, "--gpus 1 was asked for, but there are 0"),
        (GPUS, {"parallel": 5}, "5 trials at once do not fit on 4 GPUs .* at most 4 do"),
        (GPUS, {"gpus_per_trial": 2, "parallel": 3}, "at most 2 do"),
        (GPUS, {"gpus_per_trial": 5}, "gpus_per_trial is 5, but there are 4 GPUs"),
        (CPUS, {"device": "cuda"}, "device 'cuda' cannot be had"),
        (GPUS, {"device": "cuda", "gpus": 0}, "device 'cuda' cannot be had"),
        (GPUS, {"device": "cuda:1"}, r"device 'cuda:1' cannot be had.*--device cuda"),
    ],
)
def test_more_than_there_is_is_refused(resources: dict[str, float], options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        planned(resources, **options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"parallel": 0}, "parallel must be at least 1, got 0"),
        ({"workers_per_gpu": 0}, "workers_per_gpu must be at least 1, got 0"),
        ({"gpus_per_trial": -1}, "gpus_per_trial must be at least 1, got -1"),
        ({"threads": 0}, "threads must be at least 1, got 0"),
        ({"gpus": -1}, "gpus must be at least 0, got -1"),
        ({"max_hours": 0.0}, "max_hours must be positive, got 0.0"),
        ({"trial_timeout": float("nan")}, "trial_timeout must be positive, got nan"),
        ({"disk_limit": float("inf")}, "disk_limit must be positive, got inf"),
        ({"workers_per_gpu": 2, "gpus_per_trial": 2}, "exclude each other"),
        ({"runner": "in-process", "parallel": 2}, "runner in-process runs one trial"),
        ({"runner": "in-process", "gpus": 1}, "runner in-process runs one trial"),
        ({"runner": "tune", "gpus_per_trial": 2}, "gpus_per_trial needs --runner ray"),
    ],
)
def test_options_that_mean_nothing_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        MachineConfig(**options)


@pytest.mark.parametrize(
    ("options", "runner"),
    [
        ({}, "in-process"),
        ({"parallel": 1, "threads": 4, "device": "cuda:1", "max_hours": 1.0}, "in-process"),
        ({"parallel": 2}, "ray"),
        ({"gpus": 1}, "ray"),
        ({"gpus": 0}, "ray"),
        ({"workers_per_gpu": 2}, "ray"),
        ({"gpus_per_trial": 2}, "ray"),
        ({"ray_address": "auto"}, "ray"),
        ({"runner": "ray"}, "ray"),
        ({"runner": "tune", "parallel": 2}, "tune"),
    ],
)
def test_auto_takes_ray_for_what_one_process_cannot_do(options: dict[str, Any], runner: str) -> None:
    assert MachineConfig(**options).chosen_runner == runner


@pytest.mark.parametrize(
    ("before", "given", "expected"),
    [
        ({"parallel": 2}, {"runner": "in-process"}, {"runner": "in-process"}),
        ({"workers_per_gpu": 3}, {"gpus_per_trial": 2}, {"gpus_per_trial": 2}),
        ({"runner": "tune", "gpus": 8, "parallel": 8}, {"gpus": 4}, {"gpus": 4}),
        ({"ray_address": "10.0.0.1:6379", "threads": 1}, {"parallel": 2, "threads": 3}, {"parallel": 2, "threads": 3}),
        ({"ray_address": "auto", "gpus": 8}, {"max_hours": 1.0}, {"ray_address": "auto", "gpus": 8, "max_hours": 1.0}),
        ({"threads": 1, "parallel": 4}, {"runner": "ray"}, {"threads": 1, "runner": "ray"}),
    ],
)
def test_a_run_goes_on_where_its_next_launch_says(
    tmp_path: Path, before: dict[str, Any], given: dict[str, Any], expected: dict[str, Any]
) -> None:
    SearchConfig.from_flat({"model": "vit_tiny_patch16_224", **before}).dump(tmp_path / "config.yaml")
    assert SearchConfig.from_flat(with_stored(tmp_path, given)).machines == MachineConfig(**expected)

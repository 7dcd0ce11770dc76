"""Commands and files for clusters: that they parse, fit together, and do in the right order what they say.

No cluster is there: Slurm's and Ray's programs are small scripts that note how they were called.
"""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from search.config import SearchConfig
from search.terminal.parser import build_parser, given_options
from spaces.errors import CompressionError

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "docs" / "deploy"
SLURM = DEPLOY / "slurm.sh"
NODES = ["node1", "node2", "node3"]

# Fields of KubeRay's RayJob that are used here, from its API reference (ray-project.github.io/kuberay/reference/api).
JOB = {"entrypoint", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished", "backoffLimit", "rayClusterSpec"}
CLUSTER = {"rayVersion", "authOptions", "headGroupSpec", "workerGroupSpecs"}
HEAD = {"rayStartParams", "template"}
GROUP = {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"}


def commands(path: Path) -> list[str]:
    """What follows run_search.py in every command of a document."""
    text = path.read_text(encoding="utf-8").replace("\\\n", " ")
    return [
        line.partition("run_search.py ")[2] for line in text.splitlines() if re.match(r"\s*(python|ray job) .*run_search", line)
    ]


def parsed(command: str) -> SearchConfig:
    """The options of a launch."""
    arguments = build_parser().parse_args(shlex.split(command, comments=True))
    assert arguments.command == "launch"
    return SearchConfig.from_flat(given_options(arguments))


@pytest.mark.parametrize("command", commands(ROOT / "docs" / "scaling.md"))
def test_every_command_of_the_page_on_scaling_parses(command: str) -> None:
    words = shlex.split(command, comments=True)
    assert build_parser().parse_args(words).command == words[0]


def test_there_are_commands_on_that_page_and_a_wrong_one_would_be_found() -> None:
    assert len(commands(ROOT / "docs" / "scaling.md")) >= 8
    with pytest.raises(CompressionError, match="--paralel"):
        parsed("launch --paralel 2")


def documents() -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for entry in yaml.safe_load_all((DEPLOY / "kuberay.yaml").read_text(encoding="utf-8")):
        found.setdefault(entry["kind"], []).append(entry)
    return found


def test_the_ray_job_has_known_fields_only() -> None:
    (job,) = documents()["RayJob"]
    assert (job["apiVersion"], set(job)) == ("ray.io/v1", {"apiVersion", "kind", "metadata", "spec"})
    cluster = job["spec"]["rayClusterSpec"]
    assert (set(job["spec"]), set(cluster)) == (JOB, CLUSTER)
    assert set(cluster["headGroupSpec"]) == HEAD
    assert all(set(group) == GROUP for group in cluster["workerGroupSpecs"])
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        assert all(isinstance(value, str) for value in group["rayStartParams"].values()), "the API takes strings only"
        assert all(re.fullmatch("[a-z-]+", name) for name in group["rayStartParams"])


def test_the_ray_job_asks_for_a_token_and_for_no_open_port() -> None:
    (job,) = documents()["RayJob"]
    assert job["spec"]["rayClusterSpec"]["authOptions"] == {"mode": "token"}
    text = (DEPLOY / "kuberay.yaml").read_text(encoding="utf-8")
    assert not re.search(r"^\s*(serviceType|enableIngress|hostNetwork|kind: (Service|Ingress))", text, re.MULTILINE)


def test_the_ray_job_runs_the_version_that_is_pinned() -> None:
    (job,) = documents()["RayJob"]
    pinned = re.search(r"^ray==(.+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    assert pinned and job["spec"]["rayClusterSpec"]["rayVersion"] == pinned[1]


def test_the_ray_job_searches_on_all_gpus_of_its_workers_in_folders_that_all_pods_share() -> None:
    (job,) = documents()["RayJob"]
    config, cluster = parsed(job["spec"]["entrypoint"].partition("run_search.py ")[2]), job["spec"]["rayClusterSpec"]
    (group,) = cluster["workerGroupSpecs"]
    pods = [entry["template"]["spec"] for entry in (cluster["headGroupSpec"], group)]
    gpus = [pod["containers"][0]["resources"]["limits"].get("nvidia.com/gpu", 0) for pod in pods]
    assert (gpus[0], cluster["headGroupSpec"]["rayStartParams"]["num-gpus"]) == (0, "0")
    assert config.machines.gpus == gpus[1] * group["replicas"]
    assert (config.machines.ray_address, config.machines.chosen_runner) == ("auto", "ray")
    claims = {entry["metadata"]["name"]: entry["spec"]["accessModes"] for entry in documents()["PersistentVolumeClaim"]}
    for pod in pods:
        shared = {
            entry["name"]: entry["persistentVolumeClaim"]["claimName"] for entry in pod["volumes"] if "emptyDir" not in entry
        }
        assert all(claims[name] == ["ReadWriteMany"] for name in shared.values())
        paths = [mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"] if mount["name"] in shared]
        for used in (config.study.output, config.data.data_dir, config.model.checkpoint):
            assert used and any(used.startswith(f"{path}/") for path in paths), used


def test_the_image_holds_what_is_run() -> None:
    lines = (DEPLOY / "Dockerfile").read_text(encoding="utf-8").splitlines()
    copied = [name for line in lines if line.startswith("COPY") for name in shlex.split(line)[1:-1]]
    assert {"run_search.py", "spaces", "objectives", "search", "constraints.txt"} <= set(copied)
    assert all((ROOT / name).exists() for name in copied)


def test_the_script_for_slurm_is_shell() -> None:
    subprocess.run(["bash", "-n", str(SLURM)], check=True)
    if shutil.which("shellcheck"):
        found = subprocess.run(["shellcheck", str(SLURM)], capture_output=True, text=True)
        assert not found.stdout


PROGRAMS = {
    "scontrol": """#!/bin/bash
echo "scontrol $*" >> calls
[ "$1" != show ] || printf '%s\\n' node1 node2 node3
""",
    "srun": """#!/bin/bash
echo "srun $*" >> calls
exec /bin/sleep 60
""",
    "ray": """#!/bin/bash
[ "$1" = status ] || exit 9
for ((i = 0; i < JOINED; i++)); do echo " 1 node_$i"; done
""",
    "sleep": """#!/bin/bash
exec /bin/sleep "$([ "$1" -gt 3 ] && echo 0.1 || echo "$1")"
""",
    # What the search does at SIGINT is the test's to say.
    "python": f"""#!{sys.executable}
import json, os, pathlib, signal, sys, time
def end(number, frame):
    with open("calls", "a") as calls:
        calls.write(f"python got {{signal.Signals(number).name}}\\n")
    if number == signal.SIGTERM or os.environ["AT_INT"] != "ignore":
        sys.exit(int(os.environ["AT_INT"]) if number == signal.SIGINT else 130)
signal.signal(signal.SIGINT, end)
signal.signal(signal.SIGTERM, end)
token = {{name: value for name, value in os.environ.items() if name.startswith("RAY_AUTH")}}
pathlib.Path("search.tmp").write_text(json.dumps([sys.argv[1:], token, os.getpid()]))
os.replace("search.tmp", "search.json")
end_at = time.monotonic() + float(os.environ["SECONDS_LONG"])
while time.monotonic() < end_at:
    time.sleep(0.05)
""",
}


class Batch:
    """The script as Slurm runs it, with other programs on its path."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.calls: list[str] = []
        for name, text in PROGRAMS.items():
            path = folder / "bin" / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
            path.chmod(0o755)

    def start(self, *options: str, **variables: str) -> "subprocess.Popen[bytes]":
        given = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "node[1-3]", "JOINED": "3", "SECONDS_LONG": "0", "AT_INT": "130"}
        path = f"{self.folder / 'bin'}:{os.environ['PATH']}"
        inherited = {name: value for name, value in os.environ.items() if name not in ("PYTHON", "PORT", "JOIN", "GRACE")}
        environment = {**inherited, **given, **variables, "PATH": path}
        with (self.folder / "said").open("wb") as said:
            return subprocess.Popen(
                ["bash", str(SLURM), *options],
                cwd=self.folder,
                env=environment,
                stdout=said,
                stderr=said,
                start_new_session=True,
            )

    def end(self, process: "subprocess.Popen[bytes]") -> int:
        status = process.wait(30)
        self.calls = (self.folder / "calls").read_text().splitlines()
        return status

    def began(self) -> tuple[list[str], dict[str, str], int]:
        """Arguments and token that the search was called with, and its process."""
        end = time.monotonic() + 30
        while not (self.folder / "search.json").exists():
            assert time.monotonic() < end, (self.folder / "said").read_text()
            time.sleep(0.05)
        arguments, token, process = json.loads((self.folder / "search.json").read_text())
        return arguments, token, process


@pytest.fixture
def batch(tmp_path: Path) -> Batch:
    return Batch(tmp_path)


def test_slurm_starts_ray_on_all_nodes_and_then_one_search(batch: Batch) -> None:
    assert batch.end(batch.start("--dataset", "digits", "--trials", "5", "--output", "runs/a b")) == 0
    starts = [call for call in batch.calls if call.startswith("srun")]
    places = [re.search(r"--nodelist=(\S+) ray start", call) for call in starts]
    assert [place and place[1] for place in places][:1] == NODES[:1]
    assert sorted(place[1] for place in places if place) == NODES
    assert "--head" in starts[0] and not any("--head" in call for call in starts[1:])
    assert all("--address=node1:6379" in call for call in starts[1:])
    arguments, token, _ = batch.began()
    assert arguments[0] == "run_search.py"
    config = parsed(shlex.join(arguments[1:]))
    assert (config.machines.ray_address, config.study.trials, config.study.output) == ("node1:6379", 5, "runs/a b")
    assert token["RAY_AUTH_MODE"] == "token"
    assert re.fullmatch("[0-9a-f]{64}", token["RAY_AUTH_TOKEN"])
    assert not any(token["RAY_AUTH_TOKEN"] in call for call in batch.calls), "others on a node see arguments"
    assert not any("requeue" in call for call in batch.calls)


def test_two_jobs_have_two_tokens(batch: Batch) -> None:
    tokens = []
    for _ in range(2):
        batch.end(batch.start())
        tokens.append(batch.began()[1]["RAY_AUTH_TOKEN"])
    assert tokens[0] != tokens[1]


def test_no_search_begins_on_some_of_the_nodes(batch: Batch) -> None:
    assert batch.end(batch.start(JOINED="2", JOIN="0")) == 1
    assert "2 of 3 nodes have joined" in (batch.folder / "said").read_text()
    assert not (batch.folder / "search.json").exists()


def test_the_status_of_a_search_that_fails_is_that_of_the_job(batch: Batch) -> None:
    process = batch.start(SECONDS_LONG="60")
    *_, search = batch.began()
    os.kill(search, signal.SIGINT)
    assert batch.end(process) == 130
    assert not any("requeue" in call for call in batch.calls), "nobody has asked the job to stop"


@pytest.mark.parametrize(
    ("at_interrupt", "status", "signals", "again"),
    [
        ("130", 130, ["SIGINT"], True),
        ("ignore", 130, ["SIGINT", "SIGTERM"], True),
        ("0", 0, ["SIGINT"], False),
    ],
    ids=["stops", "runs on beyond the grace", "was done"],
)
def test_a_job_that_is_stopped_is_queued_again_unless_its_search_is_done(
    batch: Batch, at_interrupt: str, status: int, signals: list[str], again: bool
) -> None:
    process = batch.start(SECONDS_LONG="60", AT_INT=at_interrupt, GRACE="1")
    batch.began()
    process.send_signal(signal.SIGTERM)
    assert batch.end(process) == status
    assert [call.rpartition(" ")[2] for call in batch.calls if call.startswith("python got")] == signals
    assert ("scontrol requeue 7" in batch.calls) == again

"""The files of cluster/: they parse, name what exists, agree with the lock, leave nothing open."""

import fnmatch
import importlib.resources
import json
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config

from dlogp_ray.config import ScoreConfig

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
DOCKERFILE = (CLUSTER / "Dockerfile").read_text(encoding="utf-8")
LOCK = dict(
    line.split("==")
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    if "==" in line
)
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
IMAGE = f"REGISTRY/dlogp_ray:{PROJECT['version']}-ray{LOCK['ray']}"


def documents(name: str) -> dict[str, Any]:
    """Kind -> document of a file of Kubernetes."""
    text = (CLUSTER / name).read_text(encoding="utf-8")
    return {document["kind"]: document for document in yaml.safe_load_all(text)}


JOB_FILE = documents("ray-job.yaml")
JOB = JOB_FILE["RayJob"]["spec"]
SHARED = documents("ray-cluster.yaml")["RayCluster"]["spec"]
AWS = yaml.safe_load((CLUSTER / "aws.yaml").read_text(encoding="utf-8"))
KUBERAY = pytest.mark.parametrize(
    "spec", [JOB["rayClusterSpec"], SHARED], ids=["ray-job.yaml", "ray-cluster.yaml"]
)


def pods(spec: dict[str, Any]) -> list[dict[str, Any]]:
    """The pods' specs: head first."""
    groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
    return [group["template"]["spec"] for group in groups]


def instructions(word: str) -> list[str]:
    """The arguments of each such instruction of the Dockerfile, lines joined."""
    joined = DOCKERFILE.replace("\\\n", "")
    return re.findall(rf"^{word} (.+)$", joined, re.MULTILINE)


def copied() -> set[str]:
    """What the image holds of the repository."""
    return {source for line in instructions("COPY") for source in line.split()[:-1]}


def scripts() -> list[str]:
    """Every script of a job that the files and the README run, as the image has it."""
    readme = (CLUSTER / "README.md").read_text(encoding="utf-8")
    return re.findall(r"python (/\S+\.py)", f"{JOB['entrypoint']}\n{readme}")


# --- versions


def test_the_base_image_has_the_locked_ray() -> None:
    assert instructions("FROM") == [f"rayproject/ray:{LOCK['ray']}-py312-gpu"]


def test_every_file_runs_the_same_image_of_this_version_and_the_locked_ray() -> None:
    images = {container["image"] for pod in pods(SHARED) for container in pod["containers"]}
    images |= {
        container["image"] for pod in pods(JOB["rayClusterSpec"]) for container in pod["containers"]
    }
    assert images | {AWS["docker"]["image"]} == {IMAGE}
    for name in ("Dockerfile", "README.md"):
        text = (CLUSTER / name).read_text(encoding="utf-8")
        assert set(re.findall(r"REGISTRY/[\w./:-]+", text)) == {IMAGE}


@KUBERAY
def test_ray_version_is_the_locked_one(spec: dict[str, Any]) -> None:
    assert spec["rayVersion"] == LOCK["ray"]


def test_the_image_installs_what_the_package_needs_from_the_lock_without_other_extras() -> None:
    """The very line of the Dockerfile is run, so that it can't differ from what is tested."""
    (line,) = re.findall(r"python -c '(import tomllib; .+?)' +>", "".join(instructions("RUN")))
    asked: list[str] = []
    exec(line, {"open": lambda name, mode: (ROOT / name).open(mode), "print": _into(asked)})
    extras = PROJECT["optional-dependencies"]
    assert asked == [*PROJECT["dependencies"], *extras["lora"], "boto3"]
    installs = [run for run in instructions("RUN") if "pip install" in run]
    assert "-c constraints.txt -r requirements.txt" in installs[0]
    assert "--no-deps ." in installs[1]


def _into(lines: list[str]) -> Any:
    return lambda *values, sep: lines.extend(values)


# --- entry points


def test_the_scripts_that_are_run_exist_and_are_in_the_image() -> None:
    (workdir,) = instructions("WORKDIR")
    assert len(scripts()) >= 3
    for script in scripts():
        path = Path(script).relative_to(workdir)
        assert (ROOT / path).is_file()
        assert path.parts[0] in copied()


def test_what_the_image_copies_exists_and_is_not_ignored() -> None:
    ignored, *kept = [
        line
        for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
        if line and not line.startswith("#")
    ]
    assert ignored == "*"
    allowed = {line.removeprefix("!") for line in kept if line.startswith("!")}
    assert copied() == allowed
    assert all((ROOT / name).exists() for name in allowed)
    denied = [line for line in kept if not line.startswith("!")]
    assert not [name for name in allowed if any(fnmatch.fnmatch(name, d) for d in denied)]


def test_the_job_is_run_with_the_file_that_the_config_map_mounts() -> None:
    program, script, option, path = shlex.split(JOB["entrypoint"])
    assert (program, script, option) == ("python", scripts()[0], "--config")
    (head,) = pods(JOB["rayClusterSpec"])[0]["containers"]
    (mount,) = head["volumeMounts"]
    (volume,) = pods(JOB["rayClusterSpec"])[0]["volumes"]
    assert volume["name"] == mount["name"]
    config_map = JOB_FILE["ConfigMap"]
    assert volume["configMap"]["name"] == config_map["metadata"]["name"]
    assert [f"{mount['mountPath']}/{key}" for key in config_map["data"]] == [path]


def test_the_job_file_is_a_job_and_its_actors_fit_the_workers() -> None:
    values = yaml.safe_load(JOB_FILE["ConfigMap"]["data"]["job.yaml"])
    ScoreConfig.from_mapping(values)
    (group,) = JOB["rayClusterSpec"]["workerGroupSpecs"]
    (worker,) = group["template"]["spec"]["containers"]
    gpus = group["maxReplicas"] * int(worker["resources"]["limits"]["nvidia.com/gpu"])
    assert values["actors"]["max"] * values["gpus_per_actor"] == gpus


def test_both_files_of_kubernetes_have_the_same_workers() -> None:
    assert JOB["rayClusterSpec"]["workerGroupSpecs"] == SHARED["workerGroupSpecs"]


# --- shape


@KUBERAY
def test_the_head_does_no_work_and_workers_come_from_zero(spec: dict[str, Any]) -> None:
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert spec["enableInTreeAutoscaling"] is True
    for group in spec["workerGroupSpecs"]:
        assert (group["minReplicas"], group["replicas"]) == (0, 0)
        assert group["maxReplicas"] > 0


@KUBERAY
def test_pods_are_consistent(spec: dict[str, Any]) -> None:
    names = [group["groupName"] for group in spec["workerGroupSpecs"]]
    assert len(set(names)) == len(names)
    for pod in pods(spec):
        assert pod["restartPolicy"] == "Never"  # of autoscaler v2
        volumes = {volume["name"] for volume in pod.get("volumes", [])}
        for container in pod["containers"]:
            # Ray counts by the limits, Kubernetes places by the requests.
            assert container["resources"]["requests"] == container["resources"]["limits"]
            assert {m["name"] for m in container.get("volumeMounts", [])} == volumes


@KUBERAY
def test_workers_are_on_spot_nodes_and_the_head_is_not(spec: dict[str, Any]) -> None:
    head, *workers = pods(spec)
    assert head["nodeSelector"] == {"eks.amazonaws.com/capacityType": "ON_DEMAND"}
    for worker in workers:
        assert worker["nodeSelector"] == {"eks.amazonaws.com/capacityType": "SPOT"}
        assert {"nvidia.com/gpu"} < {toleration["key"] for toleration in worker["tolerations"]}
        # Ray's own wait for work to end is 30 s.
        assert worker["terminationGracePeriodSeconds"] > 30


def test_a_run_ends_its_cluster_and_is_tried_again() -> None:
    assert JOB["shutdownAfterJobFinishes"] is True
    assert JOB["ttlSecondsAfterFinished"] > 0
    assert JOB["backoffLimit"] > 0


def test_rays_launcher_takes_the_aws_file() -> None:
    """Ray's own schema, and what its launcher fills in."""
    schema = json.loads(
        (importlib.resources.files("ray.autoscaler") / "ray-schema.json").read_text()
    )
    jsonschema.validate(AWS, schema)
    filled = prepare_config(AWS)
    jsonschema.validate(filled, schema)
    types = filled["available_node_types"]
    head = types.pop(filled["head_node_type"])
    assert head["resources"] == {"CPU": 0}
    assert "InstanceMarketOptions" not in head["node_config"]
    for worker in types.values():
        assert worker["min_workers"] == 0
        assert worker["max_workers"] > 0
        assert worker["resources"]["GPU"] > 0
        assert worker["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    # The defaults install Ray's latest wheel over the image's.
    assert filled["setup_commands"] == filled["head_setup_commands"] == []


# --- access


@KUBERAY
def test_kuberay_asks_for_a_token_and_exposes_nothing(spec: dict[str, Any]) -> None:
    assert spec["authOptions"] == {"mode": "token"}
    head = spec["headGroupSpec"]
    assert head["serviceType"] == "ClusterIP"
    assert head["enableIngress"] is False
    assert "headService" not in head
    for pod in pods(spec):
        assert "hostNetwork" not in pod
        ports = [port for container in pod["containers"] for port in container.get("ports", [])]
        assert not [port for port in ports if "hostPort" in port]
    kinds = {*JOB_FILE, *documents("ray-cluster.yaml")}
    assert kinds == {"ConfigMap", "RayJob", "RayCluster"}


def test_rays_launcher_asks_for_a_token_and_exposes_nothing() -> None:
    assert "--env RAY_AUTH_MODE=token" in AWS["docker"]["run_options"]
    # Where Ray looks for it, in the home of the image's user.
    assert AWS["file_mounts"] == {"/home/ray/.ray/auth_token": "~/.ray/auth_token"}
    (start,) = [line for line in AWS["head_start_ray_commands"] if "ray start" in line]
    assert "--dashboard-host=127.0.0.1" in shlex.split(start)
    assert "--num-cpus=0" in shlex.split(start)
    assert "security_group" not in AWS["provider"]


def test_the_image_does_not_start_ray_without_a_token() -> None:
    settings = shlex.split(" ".join(instructions("ENV")))
    assert "RAY_AUTH_MODE=token" in settings
    assert "OMP_NUM_THREADS=1" in settings
    assert instructions("USER")[-1] == "ray"


@KUBERAY
def test_credentials_come_from_a_secret_in_every_pod(spec: dict[str, Any]) -> None:
    """Optional, for a role of the service account can take its place."""
    for pod in pods(spec):
        for container in pod["containers"]:
            assert container["envFrom"] == [{"secretRef": {"name": "dlogp-s3", "optional": True}}]
            assert "env" not in container
    readme = (CLUSTER / "README.md").read_text(encoding="utf-8")
    assert "kubectl create secret generic dlogp-s3 " in readme


@pytest.mark.parametrize("path", [*sorted(CLUSTER.glob("*.*")), CLUSTER / "Dockerfile"])
def test_no_file_holds_a_secret(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert "runtimeEnvYAML" not in text  # its variables can be read through the job API
    values = re.findall(
        r"(?i)\b\w*(?:secret_access_key|access_key_id|auth_token|hf_token|password)\s*[=:]\s*(\S+)",
        text,
    )
    # A place to fill in, a command that fetches it, or the path of a file.
    harmless = re.compile(r"…|\$\(|~/|\{|/")
    assert not [value for value in values if not harmless.match(value)]


# --- README


def test_the_readme_says_what_every_file_is_for() -> None:
    readme = (CLUSTER / "README.md").read_text(encoding="utf-8")
    first_table = readme.split("\n\n")[1]
    named = set(re.findall(r"`([\w.-]+)`", first_table))
    there = {path.name for path in CLUSTER.iterdir() if path.is_file()} - {"README.md"}
    assert named == there


def test_names_in_the_readmes_commands_are_those_of_the_files() -> None:
    readme = (CLUSTER / "README.md").read_text(encoding="utf-8")
    job = JOB_FILE["RayJob"]["metadata"]["name"]
    shared = documents("ray-cluster.yaml")["RayCluster"]["metadata"]["name"]
    assert set(re.findall(r"job-name=(\S+)", readme)) == {job}
    assert set(re.findall(r"get rayjob (\S+)", readme)) == {job}
    assert set(re.findall(r"svc/(\S+)-head-svc", readme)) == {shared}
    assert set(re.findall(r"get secret (\S+)", readme)) == {shared}
    for path in re.findall(r"(?:-f|ray \w+) (cluster/[\w./-]+)", readme):
        assert (ROOT / path).is_file()

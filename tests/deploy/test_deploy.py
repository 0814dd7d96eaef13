"""The files of deploy/ are used, not only read, where a machine without Docker and Kubernetes can."""

import os
import re
import shutil
import stat
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from export.bundle import BUNDLES, file_names, read_manifest
from loadtest.figures import figures
from serving.deployment import application
from serving.settings import Settings
from tests.conftest import ROOT
from tests.processes import family, listening, replicas
from tests.service import fetch, free_port, running

KUBERAY = {"rayservice.yaml": "Dockerfile", "rayservice-gpu.yaml": "Dockerfile.gpu"}
"""Manifests, and where their images come from."""


def documents(name: str) -> Any:
    return yaml.safe_load((ROOT / "deploy" / name).read_text())


def serve_configs() -> dict[str, Any]:
    return {
        "laptop.yaml": documents("laptop.yaml"),
        "server.yaml": documents("server.yaml"),
        **{name: yaml.safe_load(documents(name)["spec"]["serveConfigV2"]) for name in KUBERAY},
    }


@pytest.mark.parametrize("name", ["laptop.yaml", "server.yaml", *KUBERAY])
def test_serve_configs_fit_rays_schema_and_our_settings(name: str) -> None:
    config = ServeDeploySchema.model_validate(serve_configs()[name])
    [declared] = config.applications
    assert declared.import_path == "serving.deployment:application"
    settings = Settings(**declared.args)
    assert application(declared.args)
    assert (serve_configs()[name]["proxy_location"] == "Disabled") == (settings.ingress == "direct")


@pytest.mark.parametrize("name", KUBERAY)
def test_the_workers_can_hold_the_replicas(name: str) -> None:
    cluster = documents(name)["spec"]["rayClusterConfig"]
    settings = Settings(**serve_configs()[name]["applications"][0]["args"])
    [group] = cluster["workerGroupSpecs"]
    [container] = group["template"]["spec"]["containers"]
    limits = container["resources"]["limits"]
    gpus = int(limits.get("nvidia.com/gpu", 0))
    assert int(limits["cpu"]) * group["replicas"] >= settings.replicas * settings.cpus
    assert gpus * group["replicas"] >= settings.whole_gpus
    # A replica that a worker's Ray has no GPU for would wait for ever.
    assert int(group["rayStartParams"].get("num-gpus", 0)) == gpus
    assert group["groupName"] == settings.device.replace("cuda", "gpu")
    assert cluster["authOptions"] == {"mode": "token"}


def test_workers_with_a_gpu_may_lie_where_gpus_are_and_find_their_bundle() -> None:
    settings = Settings(**serve_configs()["rayservice-gpu.yaml"]["applications"][0]["args"])
    [group] = documents("rayservice-gpu.yaml")["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    pod = group["template"]["spec"]
    [container] = pod["containers"]
    assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in pod["tolerations"]
    # Kubernetes wants as much asked for as there is at most, of what cannot be shared.
    assert container["resources"]["requests"] == container["resources"]["limits"]
    assert settings.gpus == 1
    assert [mount["name"] for mount in container["volumeMounts"] if mount["mountPath"] == str(settings.bundle)] == [
        volume["name"] for volume in pod["volumes"]
    ]


@pytest.mark.parametrize(("name", "dockerfile"), KUBERAY.items())
def test_the_image_has_the_tested_ray_and_no_torch(name: str, dockerfile: str) -> None:
    cluster = documents(name)["spec"]["rayClusterConfig"]
    pinned = dict(
        line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")
    )
    assert cluster["rayVersion"] == pinned["ray"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    images = {each["image"] for group in groups for each in group["template"]["spec"]["containers"]}
    built = (ROOT / "deploy" / dockerfile).read_text()
    assert {image.split(":")[0] for image in images} == set(re.findall(r"--tag (\S+)", built))
    assert "torch" not in built.split("FROM", 1)[1]
    assert f'constraints.txt ".[{"gpu" if "gpu" in name else "cpu"}]"' in built
    for folder in ("model", "export", "serving", "loadtest", "deploy"):
        assert f"COPY {folder} ./{folder}" in built


def ray_environment(name: str = "ray.env") -> dict[str, str]:
    lines = (ROOT / "deploy" / name).read_text().splitlines()
    return dict(line.split("=", 1) for line in lines)


def test_ray_is_given_the_same_environment_however_it_is_started() -> None:
    expected = ray_environment()
    whole = (ROOT / "serving" / "ray_environment.py").read_text()
    everywhere, here = (
        dict(re.findall(r'(?:setdefault\(|environ\[)"(\w+)"(?:, |\] = )"(.*?)"', source))
        for source in whole.split("def prepare_local")
    )
    assert everywhere == expected
    assert here == ray_environment("loopback.env")
    for name in KUBERAY.values():
        built = (ROOT / "deploy" / name).read_text()
        assert dict(re.findall(r"((?:RAY|MALLOC)_\w+)=(\S+)", built)) == expected


@pytest.mark.slow
@pytest.mark.parametrize("name", ["laptop.yaml", "server.yaml"])
def test_serve_run_accepts_the_config_file(name: str, tmp_path: Path) -> None:
    config = serve_configs()[name]
    port = free_port()
    config["applications"][0]["args"] |= {"port": port, "cpus": 1}
    (tmp_path / name).write_text(yaml.safe_dump(config))
    command = [
        str(Path(sys.executable).with_name("serve")),
        "run",
        str(tmp_path / name),
        "--app-dir",
        str(ROOT),
    ]
    with running(command, port, **ray_environment(), **ray_environment("loopback.env")) as process:
        assert fetch(f"http://127.0.0.1:{port}/v1/translate", b'{"text": "Hello."}').status == 200
        assert figures(f"http://127.0.0.1:{port}")["steps_total"] > 0
        # Without the setting `state`, what replicas share lies with Ray's own files.
        [folder] = {
            Path(each.path).parent.parent
            for replica in replicas(process.pid)
            for each in psutil.Process(replica).memory_maps()
            if each.path.endswith(".totals")
        }
        assert (folder.name, folder.parent.name.partition("_")[0]) == ("dragoman", "session")
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert [each for each in listening(family(process.pid)) if not each.loopback] == []


@pytest.mark.slow
def test_a_wheel_carries_what_serving_needs(tmp_path: Path) -> None:
    source = tmp_path / "source"  # building leaves folders behind
    left_out = shutil.ignore_patterns(".git", ".venv*", "*.egg-info", "__pycache__", ".*_cache", "build")
    shutil.copytree(ROOT, source, ignore=left_out)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "--quiet",
        "-w",
        str(tmp_path),
    ]
    subprocess.run([*command, str(source)], check=True, env=os.environ | {"PIP_DISABLE_PIP_VERSION_CHECK": "1"})
    [wheel] = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    for bundle in BUNDLES.iterdir():
        files = file_names(read_manifest(bundle).graphs)
        assert {f"export/bundles/{bundle.name}/{name}" for name in ("manifest.json", *files)} <= names
    assert {"loadtest/sentences.txt", "export/sentences.txt", "serving/api/native.py"} <= names
    assert {"serving/commands/serve.py", "model/pretrained/en-de-base/DATA.md"} <= names
    assert not any(name.endswith(".safetensors") for name in names)
    assert not any(name.startswith("tests/") for name in names)

"""The files of deploy/ are used, not only read, where a machine without Docker and Kubernetes can."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from export.bundle import BUNDLES, file_names, read_manifest
from serving.deployment import application
from serving.settings import Settings
from tests.conftest import ROOT
from tests.processes import family, listening
from tests.service import fetch, free_port, running


def documents(name: str) -> Any:
    return yaml.safe_load((ROOT / "deploy" / name).read_text())


def serve_configs() -> dict[str, Any]:
    return {
        "laptop.yaml": documents("laptop.yaml"),
        "server.yaml": documents("server.yaml"),
        "rayservice.yaml": yaml.safe_load(documents("rayservice.yaml")["spec"]["serveConfigV2"]),
    }


@pytest.mark.parametrize("name", ["laptop.yaml", "server.yaml", "rayservice.yaml"])
def test_serve_configs_fit_rays_schema_and_our_settings(name: str) -> None:
    config = ServeDeploySchema.model_validate(serve_configs()[name])
    [declared] = config.applications
    assert declared.import_path == "serving.deployment:application"
    settings = Settings(**declared.args)
    assert application(declared.args)
    assert (serve_configs()[name]["proxy_location"] == "Disabled") == (settings.ingress == "direct")


def test_the_workers_can_hold_the_replicas() -> None:
    manifest = documents("rayservice.yaml")
    arguments = serve_configs()["rayservice.yaml"]["applications"][0]["args"]
    groups = {group["groupName"]: group for group in manifest["spec"]["rayClusterConfig"]["workerGroupSpecs"]}
    assert set(groups) == {"cpu"}
    [cpu] = groups["cpu"]["template"]["spec"]["containers"]
    assert (
        int(cpu["resources"]["limits"]["cpu"]) * groups["cpu"]["replicas"] >= arguments["replicas"] * arguments["cpus"]
    )
    assert manifest["spec"]["rayClusterConfig"]["authOptions"] == {"mode": "token"}


def test_the_image_has_the_tested_ray_and_no_torch() -> None:
    manifest = documents("rayservice.yaml")
    pinned = dict(
        line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")
    )
    assert manifest["spec"]["rayClusterConfig"]["rayVersion"] == pinned["ray"]
    dockerfile = (ROOT / "deploy" / "Dockerfile").read_text()
    assert "torch" not in dockerfile.split("FROM", 1)[1]
    for folder in ("model", "export", "serving", "loadtest", "deploy"):
        assert f"COPY {folder} ./{folder}" in dockerfile


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
    dockerfile = (ROOT / "deploy" / "Dockerfile").read_text()
    assert dict(re.findall(r"((?:RAY|MALLOC)_\w+)=(\S+)", dockerfile)) == expected


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
        assert [each for each in listening(family(process.pid)) if not each.loopback] == []


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

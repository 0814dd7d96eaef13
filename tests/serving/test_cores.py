import os
from pathlib import Path

import pytest

from serving.cores import cores, quotas


def system(root: Path, groups: str, **files: str) -> Path:
    """A folder that looks like / to whoever asks for control groups; ``/`` in a name is written ``__``."""
    for name, content in {"proc__self__cgroup": groups, **files}.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("0::/\n", {"sys__fs__cgroup__cpu.max": "200000 100000\n"}, [2.0]),
        ("0::/\n", {"sys__fs__cgroup__cpu.max": "max 100000\n"}, []),
        (
            "0::/a/b\n",
            {"sys__fs__cgroup__a__b__cpu.max": "max 100000", "sys__fs__cgroup__a__cpu.max": "150000 100000"},
            [1.5],
        ),
        ("0::/a\n", {"sys__fs__cgroup__unified__a__cpu.max": "50000 100000"}, [0.5]),
        (
            "7:blkio:/\n4:cpu,cpuacct:/docker/1f\n1:name=systemd:/\n",
            {
                "sys__fs__cgroup__cpu,cpuacct__docker__1f__cpu.cfs_quota_us": "300000\n",
                "sys__fs__cgroup__cpu,cpuacct__docker__1f__cpu.cfs_period_us": "100000\n",
                "sys__fs__cgroup__cpu,cpuacct__cpu.cfs_quota_us": "-1\n",
                "sys__fs__cgroup__cpu,cpuacct__cpu.cfs_period_us": "100000\n",
            },
            [3.0],
        ),
        # The path is the host's; the container sees its own group where all begin.
        (
            "1:cpu:/docker/1f\n",
            {"sys__fs__cgroup__cpu__cpu.cfs_quota_us": "200000", "sys__fs__cgroup__cpu__cpu.cfs_period_us": "100000"},
            [2.0],
        ),
        # Mounted under another name than in /proc.
        (
            "1:cpuacct,cpu:/a\n",
            {
                "sys__fs__cgroup__cpu__a__cpu.cfs_quota_us": "200000",
                "sys__fs__cgroup__cpu__a__cpu.cfs_period_us": "100000",
            },
            [2.0],
        ),
        ("0::/../outside\n", {"sys__fs__cgroup__cpu.max": "200000 100000\n"}, [2.0]),
        ("3:cpuset:/\nnonsense\n", {"sys__fs__cgroup__cpu.max": "200000 100000\n"}, []),
        ("0::/\n", {"sys__fs__cgroup__cpu.max": "200000 0\n"}, []),
    ],
)
def test_quotas_are_read_from_both_versions_of_control_groups(
    tmp_path: Path, groups: str, files: dict[str, str], expected: list[float]
) -> None:
    assert list(quotas(system(tmp_path, groups, **files))) == expected


@pytest.mark.parametrize(
    ("quota", "expected"), [("200000", 2), ("250000", 2), ("10000", 1), ("9900000", 64), ("max", 64)]
)
def test_cores_are_whole_ones_within_the_quota_and_those_one_may_run_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota: str, expected: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    assert cores(system(tmp_path, "0::/\n", **{"sys__fs__cgroup__cpu.max": f"{quota} 100000"})) == expected


def test_without_control_groups_it_is_those_one_may_run_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 5, 6})
    assert cores(tmp_path) == 3
    assert cores() >= 1

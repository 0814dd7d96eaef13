"""Packages and indices with apt and dpkg; nothing is installed."""

import subprocess
from pathlib import Path

from rich.console import Console


class DebianError(RuntimeError):
    """apt cannot be used here; the message says why."""


def unpack(packages: list[str], archives: Path, folder: Path, console: Console) -> list[str]:
    """Unpack ``packages`` into ``folder``; those that ``archives`` does not have yet are downloaded there.

    Those that this release does not have are told on ``console`` and returned; DebianError when it has none of them.
    """
    found: list[Path] = []
    missing = []
    for package in packages:
        if not list(archives.glob(f"{package}_*.deb")) and (said := _run("apt-get", "download", package, cwd=archives)):
            console.print(f"{package}: {said.splitlines()[-1]}", markup=False, highlight=False)
            missing.append(package)
        found += archives.glob(f"{package}_*.deb")
    if not found:
        raise DebianError(f"apt has none of {', '.join(packages)}: is there a network, and was apt-get update run?")
    for archive in found:
        if said := _run("dpkg-deb", "--extract", str(archive), str(folder), cwd=folder):
            raise DebianError(f"{archive.name} cannot be unpacked: {said}")
    return missing


def indices(folder: Path) -> None:
    """Download the indices of English and German descriptions; DebianError when one of them is not there."""
    lists = folder / "lists"
    (lists / "partial").mkdir(parents=True)
    settings = folder / "apt.conf"
    # Some machines ask for no translations; the list is cleared before ours is put there.
    settings.write_text(
        f'#clear Acquire::Languages;\nAcquire::Languages {{ "en"; "de"; }};\nDir::State::lists "{lists}";\n'
        'Acquire::GzipIndexes "false";\nAPT::Sandbox::User "root";\n',
        encoding="utf-8",
    )
    said = _run("apt-get", "update", "-c", str(settings), cwd=folder)
    for path in lists.glob("*_Translation-*"):
        path.rename(folder / path.name)
    for language in ("en", "de"):
        if not list(folder.glob(f"*_Translation-{language}")):
            raise DebianError(f"apt has no index of descriptions in {language}: {said or 'is there a network?'}")


def _run(*command: str, cwd: Path) -> str:
    """What a command that failed said; "" when it did not."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False)
    except FileNotFoundError:
        raise DebianError(f"{command[0]} is not there: this needs Debian or one of its children") from None
    return (done.stderr.strip() or f"{command[0]} ended with {done.returncode}") if done.returncode else ""

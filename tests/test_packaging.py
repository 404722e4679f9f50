"""What users install: sdist, wheel, editable install and plain checkout all find the scripts and run."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
from servers import Server

ROOT = Path(__file__).parent.parent
LOAD = (
    "from shared_resilience import scripts, ResilienceService, TokenBucket;"
    "print(scripts.folder(), *(scripts.load(name).sha for name in scripts.names()));"
    "print(ResilienceService.local().get_or_create_rate_limiter('a', TokenBucket(2, 1)).try_acquire().remaining)"
)


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    here = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, capture_output=True, text=True, env={**here, **environment}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The sdist, and the wheel that is built from the sdist."""
    target = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", target, ROOT, cwd=target)
    (sdist,), (wheel,) = target.glob("*.tar.gz"), target.glob("*.whl")
    return sdist, wheel


@pytest.fixture
def fresh(tmp_path: Path) -> Path:
    """The python of an environment of its own, which has our dependency and nothing of this project."""
    venv.create(tmp_path / "venv", with_pip=True)
    return tmp_path / "venv" / "bin" / "python"


def scripts_here() -> list[str]:
    return run(sys.executable, "-c", LOAD, cwd=ROOT).split()[1:]


def test_the_wheel_holds_the_package_the_scripts_and_nothing_else(built: tuple[Path, Path]) -> None:
    names = zipfile.ZipFile(built[1]).namelist()

    assert "shared_resilience/lua/rate_limiter.lua" in names
    assert "shared_resilience/lua/lib/token_bucket.lua" in names
    assert "shared_resilience/py.typed" in names
    assert {name.split("/")[0].split("-")[0] for name in names} == {"shared_resilience"}
    assert not [name for name in names if "test" in name.split("/")[-1] and name != "shared_resilience/testing.py"]


def test_the_sdist_holds_what_the_wheel_is_made_of(built: tuple[Path, Path]) -> None:
    with tarfile.open(built[0]) as sdist:
        names = [name.partition("/")[2] for name in sdist.getnames()]

    assert {"lua/rate_limiter.lua", "shared_resilience/service.py", "LICENSE", "README.md"} <= set(names)


ASK = (
    "import asyncio, sys; from shared_resilience import ResilienceService, TokenBucket;"
    "assert 'hiredis' not in sys.modules;"
    "service = ResilienceService.from_url(sys.argv[1], command_timeout=10);"
    "print(service.get_or_create_rate_limiter('a', TokenBucket(2, 1)).try_acquire().source);"
    "limiter = service.aio.get_or_create_rate_limiter('a');"
    "print(asyncio.run(limiter.try_acquire()).source)"
)


def test_an_installed_wheel_needs_nothing_but_redis_py_to_ask_a_server(
    built: tuple[Path, Path], fresh: Path, server: Server
) -> None:
    run(fresh, "-m", "pip", "install", "--quiet", built[1], cwd=fresh.parent)

    assert "hiredis" not in run(fresh, "-m", "pip", "list", cwd=fresh.parent)
    assert run(fresh, "-c", ASK, server.url, cwd=fresh.parent).split() == ["redis", "redis"]


def test_an_installed_wheel_loads_every_script(built: tuple[Path, Path], fresh: Path) -> None:
    run(fresh, "-m", "pip", "install", "--quiet", built[1], cwd=fresh.parent)

    folder, *loaded = run(fresh, "-c", LOAD, cwd=fresh.parent).split()
    assert "site-packages/shared_resilience/lua" in folder
    assert loaded == scripts_here()
    printed = run(fresh.parent / "shared-resilience", "script", "rate_limiter", cwd=fresh.parent)
    assert "redis.call" in printed


def test_an_editable_install_takes_the_scripts_of_the_checkout(fresh: Path) -> None:
    run(fresh, "-m", "pip", "install", "--quiet", "--editable", ROOT, cwd=fresh.parent)

    folder, *loaded = run(fresh, "-c", LOAD, cwd=fresh.parent).split()
    assert Path(folder) == ROOT / "lua"
    assert loaded == scripts_here()


def test_a_plain_checkout_works_from_its_folder(fresh: Path) -> None:
    run(fresh, "-m", "pip", "install", "--quiet", "redis", cwd=fresh.parent)

    folder, *loaded = run(fresh, "-c", LOAD, cwd=fresh.parent, PYTHONPATH=str(ROOT)).split()
    assert Path(folder) == ROOT / "lua"
    assert loaded == scripts_here()

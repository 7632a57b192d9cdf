"""What is installed and shipped: the wheel, the versions, the environment script."""

import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

import videonarrator

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("data_process", "videonarrator", "metrics")


def run(*command: str | Path, cwd: Path, **variables: str) -> str:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | variables
    done = subprocess.run(
        [str(word) for word in command], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel, built from a copy, so that no build folder is left in the checkout (or taken from it)."""
    copy = tmp_path_factory.mktemp("source") / "checkout"
    ignored = shutil.ignore_patterns(".*", "runs", "build", "dist", "*.egg-info", "__pycache__", "data")
    shutil.copytree(ROOT, copy, ignore=ignored)
    (copy / "data" / "sample").mkdir(parents=True)
    (copy / "data" / "sample" / "decoy.json").write_text("{}")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", copy.parent, cwd=copy)
    (built,) = copy.parent.glob("*.whl")
    return built


def test_the_wheel_holds_the_packages_and_configs_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        licenses = [name for name in archive.namelist() if name.endswith("/LICENSE")]
    expected = {
        path.relative_to(ROOT).as_posix() for package in PACKAGES for path in (ROOT / package).rglob("*.py")
    }
    shipped = [path for ending in ("yaml", "json") for path in (ROOT / "configs").rglob(f"*.{ending}")]
    expected |= {f"videonarrator/{path.relative_to(ROOT)}" for path in shipped}
    assert "videonarrator/configs/prompts/zh.yaml" in expected and licenses
    assert names - expected == set(), "not part of the packages, but in the wheel"
    assert expected - names == set(), (
        "not in the wheel: name its package in pyproject.toml, [tool.setuptools]"
    )


def test_configs_are_found_in_an_installed_wheel(wheel, tmp_path):
    target, elsewhere = tmp_path / "target", tmp_path / "elsewhere"
    elsewhere.mkdir()
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--target",
        target,
        wheel,
    ]
    run(*pip, cwd=elsewhere)
    code = (
        "from videonarrator.config import *; print(load_template('zh').narration, config_path('prompts/zh'))"
    )
    printed = run(sys.executable, "-c", code, cwd=elsewhere, PYTHONPATH=str(target))
    assert printed.split() == ["{i}.", str(target / "videonarrator" / "configs" / "prompts" / "zh.yaml")]


def test_configs_are_found_in_an_editable_installation(tmp_path):
    code = "from videonarrator.config import *; print(config_path('prompts/zh'))"
    printed = run(sys.executable, "-c", code, cwd=tmp_path)
    assert Path(printed.strip()) == ROOT / "configs" / "prompts" / "zh.yaml"


def test_one_version_everywhere(wheel):
    here = videonarrator.__version__
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    newest = re.search(r"^## \[(\d[^]]*)\]", changelog, re.MULTILINE)
    assert newest is not None
    assert {here, version("videonarrator"), citation["version"], newest[1], wheel.name.split("-")[1]} == {
        here
    }


def test_constraints_pin_every_requirement():
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    names = {name.replace("_", "-").lower() for name in re.findall(r"^([\w.-]+)==", pins, re.MULTILINE)}
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    wanted = {name.replace("_", "-").lower() for name in re.findall(r'"([\w.-]+)>=\d', project)}
    assert "torch" in wanted and wanted - names == set()
    assert re.search(r"^torch==[\d.]+$", pins, re.MULTILINE), "torch is pinned without a local version"


@pytest.fixture
def environment(tmp_path) -> Path:
    """Stands in for an active environment: pip notes what it is asked, and fails while `broken` exists."""
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text(
        f"""#!/bin/sh
if [ "$2" = pip ] && [ "$3" = install ]; then
    echo "$@" >> {tmp_path}/asked
    [ ! -e {tmp_path}/broken ]; exit
fi
exec {sys.executable} "$@"
"""
    )
    python.chmod(0o755)
    return tmp_path


def set_up(environment: Path, *extras: str) -> subprocess.CompletedProcess[str]:
    variables = os.environ | {"VIRTUAL_ENV": str(environment)}
    command = ["bash", str(ROOT / "scripts" / "setup_env.sh"), *extras]
    return subprocess.run(command, cwd="/", env=variables, capture_output=True, text=True, check=False)


def test_setting_up_again_is_free(environment):
    first = set_up(environment)
    assert first.returncode == 0, first.stderr
    assert first.stdout == f"{environment}/bin/python\n"
    torch, project = (environment / "asked").read_text().splitlines()
    assert torch.endswith(" torch==2.13.0") and project.endswith("-e .[test] -c constraints.txt")

    start = time.monotonic()
    again = set_up(environment)
    assert time.monotonic() - start < 5
    assert (again.returncode, again.stdout, again.stderr) == (0, first.stdout, "")
    assert len((environment / "asked").read_text().splitlines()) == 2

    assert set_up(environment, "test,clip").returncode == 0
    assert "-e .[test,clip] -c" in (environment / "asked").read_text()


def test_an_installation_that_failed_is_not_taken_for_whole(environment):
    (environment / "broken").touch()
    for _ in range(2):
        failed = set_up(environment)
        assert failed.returncode != 0 and failed.stdout == ""
    (environment / "broken").unlink()
    assert set_up(environment).returncode == 0


def test_an_active_environment_that_is_gone_is_named(tmp_path):
    failed = set_up(tmp_path / "gone")
    assert failed.returncode != 0 and f"{tmp_path}/gone has no bin/python" in failed.stderr

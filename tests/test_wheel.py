"""The wheel, installed where there is no checkout: what it holds, and that its commands work."""

import json
import os
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BUILD = [sys.executable, "-m", "hatchling", "build"]
pytestmark = pytest.mark.slow


def run(command, folder, environment=None):
    done = subprocess.run(
        [*map(str, command)], cwd=folder, env=environment, capture_output=True, text=True, timeout=500
    )
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder with the wheel and the source distribution."""
    folder = tmp_path_factory.mktemp("dist")
    code, words = run([*BUILD, "-d", folder], ROOT)
    assert code == 0, words
    return folder


@pytest.fixture(scope="module")
def clean(built, tmp_path_factory):
    """A fresh environment with the wheel and the libraries of this one, as a runner in an empty folder."""
    folder = tmp_path_factory.mktemp("clean")
    venv.create(folder / "venv", with_pip=False)
    python = folder / "venv" / "bin" / "python"
    site = next((folder / "venv" / "lib").glob("python*/site-packages"))
    # As a plain line it brings the libraries and not the checkout, which an editable install links there.
    (site / "libraries.pth").write_text(sysconfig.get_path("purelib"))
    (wheel,) = built.glob("*.whl")
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-index", "--no-deps"]
    code, words = run([*pip, "--ignore-installed", wheel], folder)
    assert code == 0, words
    empty = folder / "empty"
    empty.mkdir()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(folder / "cache"), "COLUMNS": "200"}

    def runner(*words):
        command = [python, *words[1:]] if words[0] == "python" else [python.with_name(words[0]), *words[1:]]
        return run(command, empty, environment)

    runner.site = site
    return runner


def test_the_wheel_holds_the_package_and_nothing_else(built):
    (wheel,) = built.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    package = [name for name in names if name.startswith("transformer_dropout/")]
    others = {name.split("/")[0].split("-")[0] for name in names} - {"transformer_dropout"}
    assert not others
    assert not [name for name in package if "twin" in name or "bench" in name or "test" in Path(name).name]
    assert {"transformer_dropout/__init__.pyi", "transformer_dropout/py.typed"} <= set(package)
    assert any(name.endswith("licenses/LICENSE") for name in names)
    kilobytes = wheel.stat().st_size / 1000
    shown = next(line for line in dependencies().splitlines() if line.startswith("The wheel "))
    assert f"less than {-(-kilobytes // 50) * 50:.0f} kB" in shown, f"{kilobytes} kB, and the page: {shown}"


def dependencies():
    return (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8")


def test_the_source_distribution_builds_the_same_wheel(built, tmp_path):
    (source,), (wheel,) = built.glob("*.tar.gz"), built.glob("*.whl")
    with tarfile.open(source) as archive:
        archive.extractall(tmp_path, filter="data")
    (folder,) = tmp_path.iterdir()
    code, words = run([*BUILD, "-t", "wheel", "-d", tmp_path], folder)
    assert code == 0, words
    (again,) = tmp_path.glob("*.whl")
    assert sorted(zipfile.ZipFile(again).namelist()) == sorted(zipfile.ZipFile(wheel).namelist())
    assert {"tests", "benchmarks", "docs", "LICENSE"} <= {path.name for path in folder.iterdir()}


def test_the_commands_work_from_an_empty_folder(clean, text_file):
    code, words = clean("python", "-c", "import transformer_dropout as td; print(td.__file__, td.Dropout)")
    assert code == 0 and str(clean.site) in words, words
    code, words = clean("dropout", "audit", "gpt2", "--json")
    # Exit code 1: findings; the config of GPT-2 has a field that nothing reads.
    assert code in (0, 1) and json.loads(words)["events"], words
    small = ["--set", "model.width=16", "--set", "model.blocks=1", "--set", "training.eval_every=4"]
    small += ["--data", text_file, "--seeds", "1", "--steps", "4", "--jobs", "1"]
    code, words = clean("dropout", "compare", "--out", "mine", *small)
    assert code == 0 and "Report: " in words, words
    code, words = clean("dropout", "report", "mine")
    assert code == 0 and "Report: " in words, words


def test_what_is_installed_fits_together():
    code, words = run([sys.executable, "-m", "pip", "check"], ROOT)
    assert code == 0, words


def test_the_torch_that_may_be_installed_is_the_one_that_was_tried():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pinned = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    (torch,) = (line for line in pinned if line.startswith("torch=="))
    minor = torch.rpartition(".")[0]
    assert f"{minor}.*" in project["dependencies"]

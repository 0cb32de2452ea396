"""The Keras layers on the backends that the tests have, each in a process of its own."""

import subprocess
import sys
from pathlib import Path

import pytest

CHECKS = Path(__file__).with_name("keras_checks.py")


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_the_layers_are_ours_on_a_backend(backend, environment, tmp_path):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(CHECKS)]
    home = {"KERAS_BACKEND": backend, "KERAS_HOME": str(tmp_path)}
    done = subprocess.run(command, env=environment | home, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]


@pytest.mark.slow
def test_the_layers_load_no_torch_on_another_backend(environment, tmp_path):
    code = "import sys, transformer_dropout.integrations.keras; print('torch' in sys.modules)"
    home = {"KERAS_BACKEND": "jax", "KERAS_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment | home, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"

"""What is not PyTorch's public interface: what it was tried with, and what happens where a name has gone."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
import transformers
from packaging.requirements import Requirement
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import transformer_dropout as td
from transformer_dropout.kernels import _native, torch_internals

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "transformer_dropout"
# The releases with which this suite was run to the end, and the first that was not tried.
TRIED = {"torch": (["2.13"], "2.14"), "transformers": (["5.23", "5.24"], "5.25")}


@pytest.mark.parametrize("package", TRIED)
def test_the_supported_range_is_what_was_tried(package):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [line for lines in project["optional-dependencies"].values() for line in lines]
    (allowed,) = (
        line.specifier for line in map(Requirement, project["dependencies"] + extras) if line.name == package
    )
    tried, untried = TRIED[package]
    assert all(f"{release}.0" in allowed for release in tried) and f"{untried}.0" not in allowed
    running = {"torch": torch, "transformers": transformers}[package].__version__
    assert running.startswith(tuple(f"{release}." for release in tried))


def private_names(tree):
    """Yield each private part of a name of torch or transformers that is read or imported."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in TRIED:
            parts = node.module.split(".") + [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            parts = [p for a in node.names if a.name.split(".")[0] in TRIED for p in a.name.split(".")]
        elif isinstance(node, ast.Attribute):
            text = ast.unparse(node)
            parts = text.split(".") if re.match(r"(torch|transformers)\.", text) else []
        else:
            continue
        yield from (part for part in parts if part.startswith("_") and not part.startswith("__"))


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda f: str(f.relative_to(PACKAGE)))
def test_private_names_are_used_in_one_file(file):
    # Extending PyTorch with a TorchDispatchMode is documented, although its module's name is private.
    names = set(private_names(ast.parse(file.read_text(encoding="utf-8")))) - {"_python_dispatch"}
    assert bool(names) == (file.name == "torch_internals.py"), names


def test_a_recomputation_is_inside_a_backward():
    seen = [torch_internals.inside_backward()]

    def watched(x):
        seen.append(torch_internals.inside_backward())
        return x.sin()

    x = torch.ones(2, requires_grad=True)
    torch.utils.checkpoint.checkpoint(watched, x, use_reentrant=False).sum().backward()
    assert seen == [False, False, True]


def test_modes_and_forward_derivatives_watch_and_a_default_device_does_not():
    assert not torch_internals.operations_are_watched()
    with torch.device("cpu"):
        assert not torch_internals.operations_are_watched()
    with FlopCounterMode(display=False) as counter:
        assert torch_internals.operations_are_watched()
        assert len(torch_internals.watching_modes()) == 1
    assert not torch_internals.watching_modes() and counter is not None
    assert not torch_internals.differentiates_forwards()
    with torch.autograd.forward_ad.dual_level():
        assert torch_internals.differentiates_forwards()


def test_tensors_that_stand_for_others_are_known():
    seen = [torch_internals.is_functorch_wrapped(torch.zeros(2))]
    torch.func.vmap(lambda x: seen.append(torch_internals.is_functorch_wrapped(x)) or x)(torch.zeros(2, 3))
    assert seen == [False, True]


def test_the_schema_is_an_operators_alone():
    schema = torch_internals.schema_of(torch.ops.aten.bernoulli.p)
    assert [argument.name for argument in schema.arguments] == ["self", "p", "generator"]
    assert torch_internals.schema_of(torch.bernoulli) is None


def test_compiled_modules_are_known():
    module = nn.Linear(1, 1)
    assert not torch_internals.is_compiled(module)
    assert torch_internals.is_compiled(torch.compile(module, backend="eager"))
    module.compile(backend="eager")
    assert torch_internals.is_compiled(module)


@pytest.mark.parametrize("kind", [nn.BatchNorm1d, nn.InstanceNorm1d])
def test_batch_norms_are_known(kind):
    assert torch_internals.is_batch_norm(kind(2))
    assert not torch_internals.is_batch_norm(nn.LayerNorm(2))


def test_hooks_are_seen():
    module = nn.Linear(1, 1)
    assert not torch_internals.has_any_hook(module)
    handle = module.register_full_backward_hook(lambda *_: None)
    assert torch_internals.has_any_hook(module) and not torch_internals.hooks_of(module)
    handle.remove()
    before = module.register_forward_pre_hook(hook := lambda *_: None)
    assert torch_internals.has_any_hook(module) and torch_internals.hooks_of(module) == [hook]
    before.remove()
    everywhere = nn.modules.module.register_module_forward_hook(lambda *_: None)
    assert torch_internals.has_any_hook(module)
    everywhere.remove()


def test_tensors_with_one_storage_are_known():
    x = torch.zeros(4)
    identity = torch_internals.storage_identity
    assert identity(x) == identity(x[1:]) != identity(x.clone())


def test_the_softmax_gradient_is_the_formulas():
    scores = torch.randn(3, 5, requires_grad=True)
    weights, gradient = scores.softmax(-1), torch.randn(3, 5)
    weights.backward(gradient)
    torch.testing.assert_close(torch_internals.softmax_backward(gradient, weights.detach()), scores.grad)


# Each as a release without the name would find it: everything goes on, at most more slowly.
def test_without_its_names_everything_goes_on(monkeypatch):
    x, weight = torch.randn(40, 40), torch.randn(2000, 40)
    expected = td.functional.dropout(x, 0.0) @ weight.T
    weights, gradient = x.softmax(-1), torch.randn(40, 40)
    fused = torch_internals.softmax_backward(gradient, weights)
    monkeypatch.delattr(torch, "_softmax_backward_data")
    monkeypatch.delattr(torch._C, "_current_graph_task_id")
    monkeypatch.delattr(nn.modules.module, "_has_any_global_hook")
    monkeypatch.setattr(torch_internals, "onednn_product", lambda: None)
    torch.testing.assert_close(torch_internals.softmax_backward(gradient, weights), fused)
    assert not torch_internals.inside_backward()
    assert torch_internals.has_any_hook(nn.Linear(1, 1))
    from transformer_dropout.kernels.linear import linear

    torch.testing.assert_close(linear(x, weight), expected)
    monkeypatch.delattr(torch.autograd.forward_ad, "_current_level")
    assert torch_internals.differentiates_forwards()
    monkeypatch.setattr(torch_internals, "function_modes", None)
    assert torch_internals.operations_are_watched()
    monkeypatch.delattr(torch._C, "_functorch")
    assert torch_internals.is_functorch_wrapped(x)


@pytest.mark.parametrize("package", ["numba", "triton"])
def test_a_broken_kernel_package_breaks_no_import_and_is_told_of(package, tmp_path):
    broken = tmp_path / package
    broken.mkdir()
    (broken / "__init__.py").write_text("raise OSError('libsomething.so: cannot open shared object file')")
    code = (
        "import warnings, torch; from transformer_dropout import *; import transformer_dropout as td\n"
        "x = torch.nn.Linear(4, 4)(torch.randn(2, 4)); layer = td.Dropout(0.5)\n"
        "from transformer_dropout.kernels import _native\n"
        "with warnings.catch_warnings(record=True) as told:\n"
        "    warnings.simplefilter('always'); layer(x).sum().backward(); layer(x)\n"
        f"    assert not _native.{package}_installed() and not _native.{package}_installed()\n"
        "(warning,) = told\n"
        f"assert '{package} is installed but cannot be loaded' in str(warning.message)\n"
    )
    path = f"{tmp_path}:{PACKAGE.parent}"
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": path, "OMP_NUM_THREADS": "1"})


def test_a_package_that_is_not_there_is_not_told_of():
    assert not _native.can_be_loaded("no_such_package_at_all")


@pytest.mark.parametrize(("reentrant", "name"), [(False, "recompute_fn"), (True, "run_function")])
def test_what_a_checkpoint_computes_again_is_found_in_its_frame(reentrant, name):
    found = []

    def watched(x):
        frame = sys._getframe()
        while frame is not None:
            found.append(torch_internals.recomputed_by(frame))
            frame = frame.f_back
        return x.sin()

    torch.utils.checkpoint.checkpoint(watched, torch.ones(2, requires_grad=True), use_reentrant=reentrant)
    ((holder, attribute),) = [one for one in found if one is not None]
    assert attribute == name and callable(getattr(holder, name))


def test_a_checkpoint_that_shows_nothing_is_no_other_frame():
    code = compile("def checkpoint(): raise RuntimeError", "/lib/torch/utils/checkpoint.py", "exec")
    made = {}
    exec(code, made)
    with pytest.raises(RuntimeError) as raised:
        made["checkpoint"]()
    with pytest.raises(LookupError, match="checkpoint shows no recompute_fn"):
        torch_internals.recomputed_by(raised.tb.tb_next.tb_frame)

"""Several processes train one model: the same numbers as one process, and the same care with files."""

import json
import shutil
import signal
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.fsdp import FSDPModule

from transformer_dropout.errors import InputError
from transformer_dropout.runs import processes
from transformer_dropout.runs.loop import Training
from transformer_dropout.runs.processes import (
    Processes,
    joined_processes,
    leave,
    lost_another,
    peak_memory_bytes,
    repeated_blocks,
    spread,
    without_gradient_sync,
)
from transformer_dropout.runs.record import read_metrics, read_run
from transformer_dropout.runs.run import prepare, run

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


@pytest.fixture
def on_two(environment):
    """Start a run's folder on two processes; the caller waits."""

    def start(config, folder):
        folder.mkdir(exist_ok=True)
        (folder / "config.yaml").write_text(config.to_yaml())
        command = [*TORCHRUN, "-m", "transformer_dropout.runs", str(folder)]
        with (folder / "log.txt").open("w") as log:
            return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, env=environment, text=True)

    return start


def finish(process, folder):
    told = process.communicate(timeout=300)[0]
    assert process.returncode == 0, (folder / "log.txt").read_text()
    return told


def stop_after(process, lines):
    """Ask the launcher to stop after so many progress lines."""
    for _ in range(lines):
        process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    assert process.returncode != 0


def run_unfinished(config, folder):
    """Continue a run on this process alone, as if its end had not been recorded."""
    record = read_run(folder) | {"status": "running"}
    (folder / "run.json").write_text(json.dumps(record))
    run(config, folder, resume=True)


def rows(folder):
    lines = read_metrics(folder / "metrics.jsonl")
    return [
        {k: v for k, v in line.items() if k not in ("step_seconds", "peak_memory_bytes")} for line in lines
    ]


def assert_close(folder, reference):
    """Check that two runs differ by no more than the order of additions explains."""
    ours, theirs = rows(folder), rows(reference)
    assert [row["step"] for row in ours] == [row["step"] for row in theirs]
    for ours_row, theirs_row in zip(ours, theirs, strict=True):
        for name in ("train_loss", "val_loss"):
            assert ours_row[name] == pytest.approx(theirs_row[name], abs=2e-5)
    weights, wanted = (load_file(place / "model" / "model.safetensors") for place in (folder, reference))
    assert weights.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert weights[name].allclose(tensor, atol=1e-3), name


def test_one_process_stands_alone():
    with joined_processes() as processes:
        assert (processes.rank, processes.size, processes.first) == (0, 1, True)
        assert processes.gather("a") == ["a"]
        assert processes.sum(torch.tensor(2.0)) == 2
        processes.wait()
        model = torch.nn.Linear(2, 2)
        assert spread(model, processes, "fsdp") is model
        with without_gradient_sync(model, processes, last=False):
            pass


def test_a_batch_that_cannot_be_shared_out_is_refused_with_one_that_can(tiny):
    config = tiny(batch=5)
    two = Processes(rank=0, size=2, device=torch.device("cpu"))
    with pytest.raises(
        InputError, match=r"5 cannot be shared among 2 processes; use --set training\.batch=6"
    ):
        Training(config, prepare(config), two)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_two_processes_give_the_numbers_of_one(tmp_path, tiny, on_two, kind):
    pulls = {"l1": "0,1e-3", "proximal_l1": 0.05, "weight_decay": "3,0", "label_smoothing": 0.1}
    config = tiny(accumulation=2, distributed=kind, **pulls)
    config = replace(config, model=replace(config.model, blocks=2))
    finish(on_two(config, tmp_path / "two"), tmp_path / "two")
    run(config, tmp_path / "one")
    assert_close(tmp_path / "two", tmp_path / "one")
    ours, theirs = (read_run(tmp_path / name)["result"] for name in ("two", "one"))
    assert ours["evaluation_bit_equal"] is True
    assert ours["penalty"] == pytest.approx(theirs["penalty"], rel=1e-3)
    assert 0 < ours["zeros"] == pytest.approx(theirs["zeros"], rel=0.02)


@pytest.mark.slow
def test_stopped_runs_of_both_kinds_go_on_and_equal_each_other_bit_for_bit(tmp_path, tiny, learned, on_two):
    # Clipping sums the gradients' norm shard by shard, so without it nothing depends on the kind.
    config = tiny(recipe=learned, steps=60, eval_every=10, accumulation=2, clip=None, ema=0.9)
    for kind, lines in (("ddp", 2), ("fsdp", 4)):
        folder, config = tmp_path / kind, replace(config, training=replace(config.training, distributed=kind))
        stop_after(on_two(config, folder), lines)
        assert read_run(folder)["status"] == "interrupted"
        assert "Continuing from step" in finish(on_two(config, folder), folder)
        assert 0 < read_run(folder)["result"]["keep"] < 1
    assert rows(tmp_path / "ddp") == rows(tmp_path / "fsdp")
    models = [(tmp_path / kind / "model" / "model.safetensors").read_bytes() for kind in ("ddp", "fsdp")]
    assert models[0] == models[1]
    with pytest.raises(InputError, match="written by another number of processes"):
        run_unfinished(config, folder)


@pytest.mark.slow
def test_a_sharded_run_goes_on_exactly_from_a_checkpoint_behind_an_evaluation(tmp_path, tiny, on_two):
    # An evaluation has no backward, and the moments of the root's parameters are saved right after it.
    config = tiny(steps=8, eval_every=4, distributed="fsdp")
    finish(on_two(config, tmp_path / "whole"), tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "again")
    for name in ("checkpoints/step-00000008", "model"):
        shutil.rmtree(tmp_path / "again" / name)
    record = read_run(tmp_path / "again") | {"status": "running", "result": None}
    (tmp_path / "again" / "run.json").write_text(json.dumps(record))
    assert "Continuing from step 4" in finish(on_two(config, tmp_path / "again"), tmp_path / "again")
    assert rows(tmp_path / "again") == rows(tmp_path / "whole")
    models = [(tmp_path / n / "model" / "model.safetensors").read_bytes() for n in ("whole", "again")]
    assert models[0] == models[1]


class Synchronised(FSDPModule, torch.nn.Linear):
    """A sharded module that notes when it is to share its gradients out."""

    def __new__(cls, *arguments):
        return torch.nn.Linear.__new__(cls)

    def __init__(self):
        torch.nn.Linear.__init__(self, 2, 2)
        self.asked = []

    def set_requires_gradient_sync(self, requires_gradient_sync, *, recurse=True):
        self.asked.append(requires_gradient_sync)


def test_sharded_gradients_are_shared_in_the_last_forward_of_a_step_only():
    module, two = Synchronised(), Processes(rank=0, size=2, device=torch.device("cpu"))
    for last in (False, False, True):
        with without_gradient_sync(module, two, last):
            pass
    assert module.asked == [False, False, True]


def test_copied_gradients_are_shared_in_the_last_forward_of_a_step_only():
    module = torch.nn.parallel.DistributedDataParallel.__new__(torch.nn.parallel.DistributedDataParallel)
    torch.nn.Module.__init__(module)
    module.require_backward_grad_sync = True
    two = Processes(rank=0, size=2, device=torch.device("cpu"))
    asked = []
    for last in (False, False, True):
        with without_gradient_sync(module, two, last):
            asked.append(module.require_backward_grad_sync)
    assert asked == [False, False, True]


class Group:
    """Stands for two processes that hold the same numbers."""

    class DistError(RuntimeError):
        """As torch's own."""

    def __init__(self):
        self.waits = 0

    def all_reduce(self, values):
        values *= 2

    def all_gather_object(self, values, value):
        values[:] = [value, [value]]

    def barrier(self):
        self.waits += 1


@pytest.fixture
def group(monkeypatch):
    group = Group()
    monkeypatch.setattr(processes, "dist", group)
    return group


def test_two_processes_add_up_gather_and_wait(group):
    two = Processes(rank=1, size=2, device=torch.device("cpu"))
    assert not two.first
    assert two.sum(torch.tensor(3.0)) == 6 and two.sum_of_numbers(2**40) == 2**41
    assert two.gather("a") == ["a", ["a"]]
    two.wait()
    assert group.waits == 1
    one = Processes(rank=0, size=1, device=torch.device("cpu"))
    assert (one.sum_of_numbers(3), one.gather("a"), one.sum(torch.tensor(3.0)).item()) == (3, ["a"], 3)
    one.wait()
    assert group.waits == 1


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (Group.DistError("any"), True),
        (RuntimeError("Connection closed by peer [127.0.0.1]"), True),
        (RuntimeError("read: Connection reset by Peer"), True),
        (RuntimeError("shapes do not fit"), False),
    ],
)
def test_a_lost_connection_is_told_from_other_errors(group, error, lost):
    assert lost_another(error) is lost


class Stacks(torch.nn.Module):
    """Two stacks of blocks, and lists that are none."""

    def __init__(self):
        super().__init__()
        self.small = torch.nn.ModuleList(torch.nn.Linear(2, 2) for _ in range(3))
        self.large = torch.nn.ModuleList(torch.nn.Linear(4, 4) for _ in range(2))
        self.single = torch.nn.ModuleList([torch.nn.Linear(20, 20)])


def test_the_blocks_are_those_of_the_largest_stack():
    model = Stacks()
    assert repeated_blocks(model) == list(model.large)
    assert repeated_blocks(torch.nn.ModuleList([torch.nn.Linear(2, 2)])) == []


def test_a_model_is_copied_or_sharded_block_by_block(monkeypatch):
    model, sharded = Stacks(), []
    two = Processes(rank=0, size=2, device=torch.device("cpu"))
    monkeypatch.setattr("torch.distributed.fsdp.fully_shard", sharded.append)
    assert spread(model, two, "fsdp") is model and sharded == [*model.large, model]
    monkeypatch.setattr("torch.nn.parallel.DistributedDataParallel", lambda module: ("copied", module))
    assert spread(model, two, "ddp") == ("copied", model)
    assert spread(model, replace(two, size=1), "ddp") is model


def test_a_process_of_many_leaves_without_a_clean_up(monkeypatch, capsys):
    with pytest.raises(SystemExit) as end:
        leave(3)
    assert end.value.code == 3
    monkeypatch.setattr(processes.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(processes.os, "_exit", lambda code: (_ for _ in ()).throw(KeyError(code)))
    with pytest.raises(KeyError, match="4"):
        leave(4)


def test_memory_is_what_the_process_has_used_or_its_gpu(monkeypatch):
    assert 2**25 < peak_memory_bytes(torch.device("cpu")) < 2**40
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: device.index)
    assert peak_memory_bytes(torch.device("cuda", 3)) == 3

import pytest
import torch

from benchmarks import gpu
from benchmarks.row import Budget
from benchmarks.run import run_rows
from transformer_dropout.kernels.mask import learned_mask
from transformer_dropout.tasks.language.decoder import DecoderConfig

QUICK = Budget(rounds=1, quick=True)


def test_without_a_gpu_no_row_is_measured_and_each_says_so(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    results = run_rows(gpu.ROWS, QUICK, lambda result: None)
    assert len(results) == len(gpu.ROWS) == 5
    assert {(result.status, result.measurement) for result in results} == {("not measured", None)}
    assert {result.reason for result in results} == {"there is no GPU here"}


def test_what_is_checked_before_timing_holds_on_the_processor_too():
    assert "of the formula's" in gpu.mask_gate("cpu", rows=64, width=144)


def twice(tensor):
    """Return a tensor whose gradient counts twice."""
    return tensor + (tensor - tensor.detach())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda x, gate, shift, key: learned_mask(x, gate, shift, key=key + 1), "draws"),
        (lambda x, gate, shift, key: learned_mask(twice(x), gate, shift, key=key), "different masks"),
        (lambda x, gate, shift, key: learned_mask(x, twice(gate), shift, key=key), "gate's gradient"),
    ],
)
def test_a_wrong_operation_is_not_timed(wrong, message, monkeypatch):
    monkeypatch.setattr(gpu, "learned_mask", wrong)
    with pytest.raises(AssertionError, match=message):
        gpu.mask_gate("cpu", rows=64, width=144)


def test_the_sides_of_a_step_agree_on_the_processor_too():
    shape = DecoderConfig(width=32, heads=2, blocks=1, context=16)
    reference, ours, told = gpu.step_sides(shape, 64, 2, "cpu")
    assert "losses equal" in told
    for side in (reference, ours):
        side.step()
        assert side.autocast and all(p.isfinite().all() for p in side.model.parameters())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
@pytest.mark.parametrize("row", gpu.ROWS, ids=lambda row: row.name)
def test_each_row_is_measured_on_a_gpu(row):
    (result,) = run_rows([row], QUICK, lambda result: None)
    assert result.status in ("met", "missed"), result.reason

"""Training through torch.compile."""

import pytest

from transformer_dropout.runs.record import read_metrics
from transformer_dropout.runs.run import run

# The compiler imports a module of torch that warns about itself.
QUIET = pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning")


@pytest.mark.slow
@QUIET
def test_a_compiled_run_has_the_losses_of_an_eager_one(tmp_path, tiny):
    for name, compiled in (("eager", False), ("compiled", True)):
        record = run(tiny(compile=compiled, accumulation=2), tmp_path / name)
        assert record["status"] == "finished"
    eager, compiled = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("eager", "compiled"))
    for name in ("train_loss", "val_loss"):
        assert [row[name] for row in compiled] == pytest.approx([row[name] for row in eager], abs=1e-3)


@pytest.mark.slow
@QUIET
def test_a_compiled_run_with_moving_rates_and_learned_masks_ends(tmp_path, tiny, learned):
    moving = learned[1] | {"p": {"linear": {"start": 0.3, "end": 0.0}}}
    record = run(tiny(compile=True, recipe=[learned[0], moving]), tmp_path / "run")
    assert record["result"]["val_loss"] < 4.5
    assert 0 < record["result"]["keep"] < 1

"""Every default arm of the small tasks goes through the run's own loop, and acts."""

import pytest

from transformer_dropout.runs.default_arms import default_arms
from transformer_dropout.runs.run import run

SHORT = {"training.steps": "6", "training.eval_every": "3", "training.warmup_steps": "1"}
SMALL = {
    "images": {"model.hidden": "[16, 16]"},
    "images_vit": {"model.width": "8", "model.blocks": "2"},
    "regression": {"model.hidden": "[16, 16]", "training.early_stopping": "null"},
}
BESIDE_THE_LOSS = {"images": "accuracy", "images_vit": "accuracy", "regression": "r2"}


@pytest.mark.parametrize("task", SMALL)
def test_the_arms_of_a_task_run_on_the_same_data_from_the_same_start_and_differ(task, tmp_path):
    arms = default_arms(task, SHORT | SMALL[task])
    assert len(arms) >= 5
    records = {arm.name: run(arm, tmp_path / arm.slug()) for arm in arms}
    first = next(iter(records.values()))
    ends = {}
    for name, record in records.items():
        assert record["data"] == first["data"]
        assert record["result"]["evaluation_bit_equal"], name
        for split in ("train", "val", "test"):
            assert {f"{split}_loss", f"{split}_{BESIDE_THE_LOSS[task]}"} <= record["result"].keys()
        ends[name] = record["result"]["train_loss"]
    # Early stopping is switched off here, and without it is no regularizer.
    ends.pop("early stopping", None)
    assert len(set(ends.values())) == len(ends)


def test_a_linear_regression_takes_noise_at_its_input_alone(tmp_path):
    changes = SHORT | {"model.hidden": "[]", "training.early_stopping": "null"}
    arms = {arm.name: arm for arm in default_arms("regression", changes)}
    record = run(arms["dropout input 0.2"], tmp_path / "run")
    assert record["status"] == "finished"

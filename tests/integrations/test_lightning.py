"""Lightning's Trainer: schedules, penalties, logs, checkpoints, stopping. All on tiny models."""

import os
import subprocess
import sys
import tempfile
import warnings
from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import DataLoader

import transformer_dropout as td
from transformer_dropout.tasks.language.decoder import Decoder, DecoderConfig

with warnings.catch_warnings():
    # Lightning imports names that its own dependencies have deprecated.
    warnings.simplefilter("ignore")
    import lightning.pytorch as pl
    from lightning.pytorch.callbacks import ModelCheckpoint

from transformer_dropout.integrations.lightning import GapStopping, RegularizationCallback

pytestmark = [
    pytest.mark.filterwarnings("ignore:The '.*dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:GPU available but not used"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*deprecated"),
]

SCHEDULES = td.Recipe(
    [
        td.Rule("mlp_output", td.LearnedDropout, heads=2, shift=1.2, weight=td.Linear(0.5, 0.1)),
        td.Rule("attention_output", td.Dropout, p=td.Linear(0.4, 0.0)),
    ]
)
PENALTY = td.Recipe([td.Rule("mlp_output", td.LearnedDropout, heads=2, shift=1.2, blocks=[0], weight=1.0)])


class Module(pl.LightningModule):
    """A decoder, and what happened to it."""

    def __init__(self, recipe=SCHEDULES):
        super().__init__()
        torch.manual_seed(0)
        self.decoder = Decoder(19, DecoderConfig(width=16, heads=2, blocks=2, context=6))
        self.regularization = td.regularize_(self.decoder, recipe)
        self.losses, self.rates = [], []

    def training_step(self, batch, index):
        loss = self.decoder(batch, batch)
        self.log("train_loss", loss)
        if torch.is_grad_enabled():
            self.losses.append(loss.item())
            self.rates.append(self.regularization.metrics().get("p/blocks.0.attention/attention_output"))
        return loss

    def validation_step(self, batch, index):
        self.log("val_loss", self.decoder(batch, batch))

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


class WithoutLoss(Module):
    """A module whose own loss has no gradient, so that only the penalty's is left."""

    def training_step(self, batch, index):
        return {"loss": super().training_step(batch, index) * 0}

    def on_train_start(self):
        self.masks = []
        self.regularization.placed[0].layer.observer = lambda keep, mask: self.masks.append(
            mask.detach().clone()
        )

    def on_before_optimizer_step(self, optimizer):
        self.gradient = self.regularization.placed[0].layer.shift.grad.clone()


def windows(count=8, seed=1):
    return torch.randint(0, 19, (count, 6), generator=torch.Generator().manual_seed(seed))


def fit(
    module,
    folder,
    callback=None,
    *,
    batch=2,
    epochs=3,
    resume=None,
    others=(),
    shuffle=False,
    loader=None,
    **options,
):
    callback = callback or RegularizationCallback(module.regularization)
    trainer = pl.Trainer(
        default_root_dir=folder,
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **({"enable_checkpointing": False} | options),
        callbacks=[callback, *others],
    )
    trainer.fit(
        module,
        loader or DataLoader(windows(), batch_size=batch, shuffle=shuffle),
        DataLoader(windows(4, seed=2), batch_size=4),
        ckpt_path=resume,
    )
    return trainer


@pytest.mark.parametrize("accumulation", [1, 4])
def test_the_penalty_has_the_same_gradient_at_every_accumulation(accumulation, tmp_path):
    module = WithoutLoss(PENALTY)
    batch = 8 // accumulation
    fit(module, tmp_path, batch=batch, epochs=1, accumulate_grad_batches=accumulation, gradient_clip_val=None)
    reference = Module(PENALTY)
    reference.decoder(windows())
    reference.regularization.penalty().backward()
    expected = reference.regularization.placed[0].layer.shift.grad
    torch.testing.assert_close(module.gradient, expected, rtol=1e-5, atol=1e-8)


def resumed_on_two(folder):
    """Train on two processes, again from the end of an epoch; return the losses of this process of both."""
    options = {"strategy": "ddp", "devices": 2, "epochs": 3, "enable_checkpointing": True, "shuffle": True}
    unbroken, resumed = Module(), Module()
    saving = [ModelCheckpoint(f"{folder}/saved", filename="{epoch}", save_top_k=-1)]
    fit(unbroken, folder, others=saving, **options)
    torch.manual_seed(99)
    fit(resumed, folder, resume=f"{folder}/saved/epoch=0.ckpt", others=saving, **options)
    return unbroken.losses, resumed.losses


def two_processes():
    """The worker of the test below: write this process's gradient and masks for two accumulations."""
    torch.set_num_threads(1)
    found = []
    for accumulation in (1, 2):
        module = WithoutLoss(PENALTY)
        options = {"strategy": "ddp", "devices": 2, "accumulate_grad_batches": accumulation}
        with tempfile.TemporaryDirectory() as folder:
            fit(module, folder, batch=4 // accumulation, epochs=1, **options)
        found.append((module.gradient, module.masks[0]))
    found.append(resumed_on_two(sys.argv[2]))
    torch.save(found, f"{sys.argv[1]}.{os.environ['RANK']}")


@pytest.mark.slow
def test_with_two_processes_the_penalty_has_the_same_gradient_and_masks_differ(tmp_path, environment):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    file = str(tmp_path / "found")
    done = subprocess.run(
        [*command, __file__, file, str(tmp_path)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    reference = Module(PENALTY)
    reference.decoder(windows())
    reference.regularization.penalty().backward()
    expected = reference.regularization.placed[0].layer.shift.grad
    found = torch.load(f"{file}.0"), torch.load(f"{file}.1")
    # Eight windows, two per batch and process: two steps per epoch.
    for unbroken, resumed in (found[0].pop(), found[1].pop()):
        assert len(unbroken) == 6
        assert resumed == unbroken[2:]
    for (mine, my_mask), (other, other_mask) in zip(*found, strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-5, atol=1e-8)
        assert torch.equal(mine, other)
        assert 0.2 < (my_mask != other_mask).float().mean() < 0.6


def test_other_penalties_are_added_too(tmp_path):
    module = Module(td.Recipe())
    weight = module.decoder.norm.weight
    terms = [td.L2([weight], td.Linear(0.4, 0.0))]
    trainer = fit(module, tmp_path, RegularizationCallback(module.regularization, penalties=terms), epochs=1)
    # 0.4 * (1 - 3/4) * sum w^2 / 2 over 16 ones, about, at the last of four steps.
    assert trainer.callback_metrics["penalty"] == pytest.approx(0.1 * 16 / 2, rel=0.2)


def test_rates_move_with_the_steps_and_are_logged(tmp_path):
    module = Module()
    trainer = fit(module, tmp_path, accumulate_grad_batches=2)
    # Six steps of two batches.
    assert module.rates == pytest.approx([0.4 * (1 - batch // 2 / 6) for batch in range(12)])
    assert trainer.callback_metrics["p/attention_output"] == pytest.approx(0.4 / 6)
    assert 0.01 < trainer.callback_metrics["penalty"] < 0.1
    # The penalty is not in what the module logs itself.
    assert trainer.callback_metrics["train_loss"] == pytest.approx(module.losses[-1])
    assert module.regularization.progress == 1.0


def test_the_module_gets_its_step_back(tmp_path):
    module = Module()
    fit(module, tmp_path, epochs=1)
    assert module.training_step == Module.training_step.__get__(module)
    assert "log" not in vars(module)


@pytest.mark.filterwarnings("ignore:.*weights_only")
def test_a_resumed_run_repeats_losses_and_rates(tmp_path):
    torch.manual_seed(5)
    unbroken = Module()
    torch.manual_seed(5)
    fit(unbroken, tmp_path / "a", epochs=4, shuffle=True)
    stopped = Module()
    saving = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    torch.manual_seed(5)
    fit(stopped, tmp_path / "b", epochs=4, shuffle=True, others=[saving], enable_checkpointing=True)
    assert stopped.losses == unbroken.losses
    resumed = Module()
    torch.manual_seed(99)
    again = {
        "others": [ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)],
        "enable_checkpointing": True,
    }
    fit(resumed, tmp_path / "c", epochs=4, shuffle=True, resume=tmp_path / "epoch=1.ckpt", **again)
    assert resumed.losses == unbroken.losses[8:]
    assert resumed.rates == unbroken.rates[8:]


class Resumable:
    """Batches in order, which a checkpoint can continue in the middle."""

    def __init__(self):
        self.batches, self.place = windows().split(2), 0

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        for place in range(self.place % len(self), len(self)):
            self.place = place + 1
            yield self.batches[place]

    def state_dict(self):
        return {"place": self.place}

    def load_state_dict(self, state):
        self.place = state["place"]


@pytest.mark.filterwarnings("ignore:.*weights_only")
@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
@pytest.mark.parametrize("resumable", [True, False])
def test_a_run_resumed_in_the_middle_of_an_epoch_repeats_rates_and_with_its_data_losses(resumable, tmp_path):
    def saving():
        saver = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
        return {"others": [saver], "enable_checkpointing": True, "loader": Resumable() if resumable else None}

    unbroken, resumed = Module(), Module()
    fit(unbroken, tmp_path, **saving())
    torch.manual_seed(99)
    fit(resumed, tmp_path, resume=tmp_path / "step=6.ckpt", **saving())
    assert len(unbroken.rates) == 12
    assert resumed.rates == unbroken.rates[6:]
    assert (resumed.losses == unbroken.losses[6:]) is resumable


def test_a_validation_measures_the_clean_gap_and_what_is_kept(tmp_path):
    module = Module()
    callback = RegularizationCallback(module.regularization, probe=windows().split(4))
    trainer = fit(module, tmp_path, callback, epochs=2)
    metrics = trainer.callback_metrics
    module.eval()
    with torch.no_grad():
        clean = module.decoder(windows(), windows()).item()
        val = module.decoder(windows(4, seed=2), windows(4, seed=2)).item()
    assert metrics["train_probe_loss"] == pytest.approx(clean, rel=1e-5)
    assert metrics["gap"] == pytest.approx(val - clean, abs=1e-5)
    assert 0.4 < metrics["keep/mlp_output"] < 0.9 < metrics["keep_eval/mlp_output"]
    # What the step logs of the probe stays out.
    assert metrics["train_loss"] == pytest.approx(module.losses[-1])


def test_measuring_does_not_move_the_training(tmp_path):
    with_probe, without = Module(), Module()
    torch.manual_seed(1)
    fit(with_probe, tmp_path, RegularizationCallback(with_probe.regularization, probe=windows().split(4)))
    torch.manual_seed(1)
    fit(without, tmp_path)
    assert with_probe.losses == without.losses


def test_training_stops_when_the_gap_stays_above_the_bound(tmp_path):
    module = Module()
    callback = RegularizationCallback(module.regularization, probe=windows().split(4))
    trainer = fit(module, tmp_path, callback, epochs=5, others=[GapStopping(-100.0, patience=2)])
    assert trainer.current_epoch == 2
    with pytest.raises(td.InputError, match="Nothing logs 'gap'"):
        fit(Module(), tmp_path, others=[GapStopping(0.1)])
    with pytest.raises(td.InputError, match="at least 1"):
        GapStopping(0.1, patience=0)


def test_only_gaps_in_a_row_stop():
    stopping, stopped = GapStopping(0.5, patience=2), []
    state = SimpleNamespace(fn="fit")
    for gap in (1.0, 0.1, 1.0, 0.5, 1.0, 1.0):
        metrics = {"gap": torch.tensor(gap)}
        trainer = SimpleNamespace(
            sanity_checking=False, state=state, callback_metrics=metrics, should_stop=False
        )
        stopping.on_validation_end(trainer, None)
        stopped.append(trainer.should_stop)
    assert stopped == [False] * 5 + [True]


def test_a_validation_outside_the_training_steers_nothing(tmp_path):
    module, stopping = Module(), GapStopping(-100.0, patience=50)
    callback = RegularizationCallback(
        module.regularization, probe=windows().split(4), feedback=td.Feedback(gap=0.0, gain=5.0, high=0.9)
    )
    trainer = fit(module, tmp_path, callback, epochs=1, others=[stopping])
    rates, waited = module.regularization.metrics(), stopping.waited
    trainer.validate(module, DataLoader(windows(4, seed=2), batch_size=4), verbose=False)
    assert module.regularization.metrics() == rates and stopping.waited == waited == 1


class Gaps(pl.Callback):
    """Keeps the gap of each validation."""

    def __init__(self):
        self.seen = []

    def on_validation_end(self, trainer, pl_module):
        if not trainer.sanity_checking:
            self.seen.append(trainer.callback_metrics["gap"].item())


def test_the_gap_moves_the_rates(tmp_path):
    feedback, gaps = td.Feedback(gap=0.01, gain=0.5, high=0.9), Gaps()
    module = Module()
    probe = windows().split(4)
    callback = RegularizationCallback(
        module.regularization, probe=probe, feedback={"attention_output": feedback}
    )
    fit(module, tmp_path, callback, epochs=4, others=[gaps])
    rates = module.rates[4::4]
    # The schedule falls within the first epoch; then each validation sets the rate.
    expected = feedback.next_rate(module.rates[3], 0.0, gaps.seen[0])
    for gap, rate in zip(gaps.seen[1:], rates, strict=True):
        assert rate == pytest.approx(expected, abs=1e-6)
        expected = feedback.next_rate(rate, 0.0, gap)
    assert len(set(rates)) == 3
    with pytest.raises(td.InputError, match="Feedback needs the gap; give the callback a probe"):
        RegularizationCallback(module.regularization, feedback=feedback)


def test_a_module_that_logs_no_validation_loss_is_told_so(tmp_path):
    module = Module()
    callback = RegularizationCallback(module.regularization, probe=windows().split(4), monitor="valid")
    with pytest.raises(td.InputError, match="logs no 'valid' in its validation_step"):
        fit(module, tmp_path, callback)
    assert module.training_step == Module.training_step.__get__(module)


def test_optimization_by_hand_is_refused(tmp_path):
    module = Module()
    module.automatic_optimization = False
    with pytest.raises(td.InputError, match="optimizes by hand"):
        fit(module, tmp_path)


def test_a_regularization_of_another_model_is_refused(tmp_path):
    with pytest.raises(td.InputError, match="another model"):
        fit(Module(), tmp_path, RegularizationCallback(Module().regularization))


def test_a_training_without_an_end_is_refused(tmp_path):
    with pytest.raises(td.InputError, match="give the Trainer max_epochs or max_steps"):
        fit(Module(), tmp_path, epochs=-1)


if __name__ == "__main__":
    two_processes()

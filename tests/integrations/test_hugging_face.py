"""The Trainer of Hugging Face: schedules, penalties, logs, checkpoints, stopping. All on tiny models."""

import json
import os
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import transformers
from accelerate.state import AcceleratorState, DistributedType
from torch import nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

import transformer_dropout as td
from transformer_dropout.audit.tiny_models import tiny_model
from transformer_dropout.integrations.hugging_face import (
    GapStopping,
    RegularizationCallback,
    RegularizedTrainerMixin,
)
from transformer_dropout.kernels.sharded import is_sharded, whole
from transformer_dropout.surgery.saved_recipe import learned_state
from transformer_dropout.tasks.language.decoder import Decoder, DecoderConfig

ARGUMENTS = {
    "report_to": [],
    "use_cpu": True,
    "disable_tqdm": True,
    "save_strategy": "no",
    "logging_steps": 1,
}
MODELS = ("gpt2", "llama", "plain")
SCHEDULES = td.Recipe(
    [
        td.Rule("mlp_output", td.LearnedDropout, heads=4, shift=1.2, weight=td.Linear(0.5, 0.1)),
        td.Rule("attention_output", td.Dropout, p=td.Linear(0.4, 0.0)),
    ]
)
# One gate whose input no mask has changed, so that its penalty's gradient is not random.
PENALTY = td.Recipe([td.Rule("mlp_output", td.LearnedDropout, heads=4, shift=1.2, blocks=[0], weight=1.0)])


class MyTrainer(RegularizedTrainerMixin, Trainer):
    """What a user writes."""


class WithoutLoss(Trainer):
    """A Trainer whose own loss has no gradient, so that only the penalty's is left."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        return (loss * 0, outputs) if return_outputs else loss * 0


class PenaltyTrainer(RegularizedTrainerMixin, WithoutLoss):
    """Only the penalty has a gradient."""


class Plain(nn.Module):
    """A model without keyword arguments for the loss, which the Trainer divides by the accumulation."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.decoder = Decoder(64, DecoderConfig(width=32, heads=4, blocks=2, context=8))

    def forward(self, input_ids, labels):
        return {"loss": self.decoder(input_ids, labels)}


@pytest.fixture(autouse=True)
def quiet():
    """Trainers write to the console."""
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    yield
    transformers.logging.set_verbosity(before)


def built(name):
    """Return a model without dropout, and the part of it that is regularized."""
    if name == "plain":
        model = Plain()
        return model, model.decoder
    rates = ["embd_pdrop", "resid_pdrop", "attn_pdrop"] if name == "gpt2" else []
    model = tiny_model(name, **dict.fromkeys(rates, 0.0))
    return model, model


def examples(count=8, seed=1):
    tokens = torch.randint(3, 64, (count, 8), generator=torch.Generator().manual_seed(seed))
    return [{"input_ids": row, "labels": row} for row in tokens]


def trainer(folder, model, handle, *, kind=MyTrainer, callbacks=(), optional=None, **arguments):
    arguments = TrainingArguments(str(folder), **(ARGUMENTS | arguments))
    return kind(
        model,
        arguments,
        regularization=handle,
        train_dataset=examples(),
        eval_dataset=examples(4, seed=2),
        callbacks=list(callbacks),
        **(optional or {}),
    )


class Gradients(TrainerCallback):
    """Keeps the gradients before the first step; sharding puts other parameters in place."""

    def __init__(self, parameters):
        self.parameters, self.seen = parameters, None

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        self.seen = self.seen or [whole(parameter.grad).clone() for parameter in self.parameters()]


def penalized(name):
    """Return a model, its handle, a penalty on its last norm, and the two parameters that penalties reach."""
    model, part = built(name)
    torch.manual_seed(7)
    handle = td.regularize_(part, PENALTY)
    # The last norm stands behind the gate, so the gate's penalty does not reach it.
    norm = [path for path, _ in part.named_parameters() if "norm" in path or "ln_f" in path][-1]
    term = td.L2(part, 0.5, select=norm)
    return model, handle, term, lambda: [handle.placed[0].layer.shift, *term.parameters]


def penalty_gradients(name, batch, accumulation, folder, **arguments):
    """Return the gradients that one step of a Trainer gives to the two penalties."""
    model, handle, term, parameters = penalized(name)
    gradients = Gradients(parameters)
    mine = trainer(
        folder,
        model,
        handle,
        kind=PenaltyTrainer,
        callbacks=[gradients],
        optional={"penalties": [term], "probe": 0},
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulation,
        max_steps=1,
        max_grad_norm=0.0,
        **arguments,
    )
    mine.train()
    return gradients.seen


def expected_gradients(name):
    """Return the same gradients, by hand, on all examples at once."""
    model, handle, _, parameters = penalized(name)
    shift, norm = parameters()
    tokens = torch.stack([example["input_ids"] for example in examples()])
    model.train()(input_ids=tokens, labels=tokens)
    handle.penalty().backward()
    return [shift.grad, 0.5 * norm.detach()]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("accumulation", [1, 4])
def test_the_penalty_has_the_same_gradient_at_every_accumulation(name, accumulation, tmp_path):
    found = penalty_gradients(name, 8 // accumulation, accumulation, tmp_path)
    for gradient, expected in zip(found, expected_gradients(name), strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-8)


class FirstMask(TrainerCallback):
    """Keeps the first mask of the training."""

    def __init__(self, layer):
        self.layer, self.mask = layer, None

    def on_step_begin(self, args, state, control, **kwargs):
        self.layer.observer = self.note

    def note(self, keep_probability, mask):
        self.mask = mask.detach().clone() if self.mask is None else self.mask


def first_mask(folder):
    """Return the first mask that this process draws; all processes see the same examples."""
    model, handle, *_ = penalized("gpt2")
    first = FirstMask(handle.placed[0].layer)
    mine = trainer(folder, model, handle, callbacks=[first], optional={"probe": 0}, max_steps=1)
    mine.train_dataset = examples(1) * 16
    mine.train()
    return first.mask


FSDP2 = {"version": 2, "state_dict_type": "SHARDED_STATE_DICT"}


@contextmanager
def sharding_on_a_cpu():
    """Let the Trainer shard here: by itself it leaves FSDP to accelerators, and uses DDP without a word."""
    original = AcceleratorState.__init__

    def patched(self, *args, fsdp_plugin=None, **kwargs):
        original(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None:
            self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, fsdp_plugin

    AcceleratorState.__init__ = patched
    yield
    AcceleratorState.__init__ = original


def resumed_under_fsdp(folder):
    """Train sharded, again from a checkpoint; return the losses and weights of both, and what was saved."""
    saving = {"save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 1}
    # Both as the processes have it: the one of the first's place.
    (folder,) = gathered(folder)[:1]
    found = []
    for start in (None, f"{folder}/checkpoint-2"):
        mine = run(folder, steps=4, name="llama", learning_rate=0.01, fsdp=True, fsdp_config=FSDP2, **saving)
        mine.train(resume_from_checkpoint=start)
        assert all(is_sharded(parameter) for parameter in mine.model.parameters())
        losses = [logged(mine, key) for key in ("loss", "penalty", "p/attention_output")]
        found.append((losses, {n: whole(p.detach()) for n, p in mine.model.named_parameters()}))
    saved = td.load_regularized(f"{folder}/checkpoint-4", tiny_model("llama"))
    return *found, learned_state(saved)


def gathered(value):
    values = [None, None]
    torch.distributed.all_gather_object(values, value)
    return values


def two_processes():
    """The worker of the tests below: write this process's gradients for all models, and its first mask."""
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as folder:
        found = {
            f"{name}/{accumulation}": penalty_gradients(name, 4 // accumulation, accumulation, folder)
            for name in MODELS
            for accumulation in (1, 2)
        }
        found["mask"] = first_mask(folder)
        with sharding_on_a_cpu():
            for name, accumulation in (("gpt2", 2), ("llama", 1), ("llama", 2)):
                found[f"{name}/fsdp/{accumulation}"] = penalty_gradients(
                    name, 4 // accumulation, accumulation, folder, fsdp=True, fsdp_config=FSDP2
                )
            found["resumed"] = resumed_under_fsdp(folder)
            torch.distributed.barrier()
    torch.save(found, f"{sys.argv[1]}.{os.environ['RANK']}")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_with_two_processes_the_penalty_has_the_same_gradient_and_masks_differ(tmp_path, environment):
    file = tmp_path / "found.pt"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*command, __file__, str(file)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = torch.load(f"{file}.0"), torch.load(f"{file}.1")
    unbroken, resumed, saved = first.pop("resumed")
    assert unbroken[0] == resumed[0]
    assert len(unbroken[0][0]) == 4
    for name, weight in unbroken[1].items():
        assert torch.equal(weight, resumed[1][name])
    # The base model's learned layers, as saved beside its checkpoint.
    assert len(saved) == 4
    assert all(torch.equal(tensor, unbroken[1][f"model.{name}"]) for name, tensor in saved.items())
    masks = first.pop("mask"), second.pop("mask")
    assert 0.2 < (masks[0] != masks[1]).float().mean() < 0.6
    assert {case for case in first if "fsdp" in case} == {"gpt2/fsdp/2", "llama/fsdp/1", "llama/fsdp/2"}
    for case, gradients in first.items():
        for gradient, expected in zip(gradients, expected_gradients(case.split("/")[0]), strict=True):
            torch.testing.assert_close(
                gradient, expected, rtol=1e-5, atol=1e-8, msg=lambda m, c=case: f"{c}: {m}"
            )


def test_without_the_division_the_penalty_would_be_four_times_too_strong(tmp_path, monkeypatch):
    monkeypatch.setattr(PenaltyTrainer, "left_to_divide", lambda self, items: 1)
    found = penalty_gradients("llama", 2, 4, tmp_path)
    for gradient, expected in zip(found, expected_gradients("llama"), strict=True):
        torch.testing.assert_close(gradient, 4 * expected, rtol=1e-5, atol=1e-8)


def run(folder, *, steps=6, name="gpt2", handle_changes=(), optional=None, **arguments):
    """Return a trainer of a model with moving rates and weights."""
    torch.manual_seed(0)
    model = tiny_model(name)
    handle = td.regularize_(model, SCHEDULES)
    for change in handle_changes:
        change(handle)
    arguments = {"max_steps": steps, "per_device_train_batch_size": 2, "seed": 3} | arguments
    return trainer(folder, model, handle, optional=optional, **arguments)


def logged(mine, name):
    return {line["step"]: line[name] for line in mine.state.log_history if name in line}


def test_rates_move_with_the_steps_and_are_logged_with_the_penalty(tmp_path):
    mine = run(tmp_path)
    mine.train()
    rates = logged(mine, "p/attention_output")
    assert list(rates.values()) == pytest.approx([0.4 * (1 - step / 6) for step in range(6)])
    assert mine.regularization.progress == 1.0
    penalties = logged(mine, "penalty")
    # Half of M squared where M is about 0.68, times a weight that falls from 0.5 to 0.1.
    assert 0.09 < penalties[1] < 0.14
    assert 0.1 < penalties[6] / penalties[1] < 0.5


def test_the_logged_loss_is_the_task_loss_alone(tmp_path):
    heavy = td.Recipe([td.Rule("mlp_output", td.LearnedDropout, heads=4, shift=1.2, weight=1000.0)])
    model = tiny_model("llama")
    # Eight examples, so that a step has two batches indeed.
    options = {"max_steps": 1, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 4}
    mine = trainer(tmp_path, model, td.regularize_(model, heavy), **options)
    mine.train()
    assert logged(mine, "penalty")[1] > 100
    assert 3 < logged(mine, "loss")[1] < 6


@pytest.mark.parametrize("name", ["llama", "plain"])
def test_losses_and_penalties_are_logged_as_means_over_what_was_not_logged_yet(name, tmp_path):
    found = []
    for every in (1, 2):
        model, handle, term, _ = penalized(name)
        options = {"logging_steps": every, "gradient_accumulation_steps": 2, "learning_rate": 0.1}
        options |= {"max_steps": 4, "per_device_train_batch_size": 2}
        mine = trainer(tmp_path, model, handle, optional={"penalties": [term], "probe": 0}, **options)
        mine.train()
        found.append([logged(mine, key) for key in ("loss", "penalty")])
    for single, pairs in zip(*found, strict=True):
        # The Trainer rounds losses to four places.
        means = [(single[1] + single[2]) / 2, (single[3] + single[4]) / 2]
        assert list(pairs.values()) == pytest.approx(means, abs=2e-4)
        assert abs(single[1] - single[4]) > 1e-3


class StopAt(TrainerCallback):
    """Ends the training early, as a kill would, with a checkpoint there."""

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == 3


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_resumed_run_repeats_losses_rates_and_weights(accumulation, tmp_path):
    saving = {"save_strategy": "steps", "save_steps": 3, "gradient_accumulation_steps": accumulation}
    unbroken = run(tmp_path / "a", **saving)
    unbroken.train()
    stopped = run(tmp_path / "b", **saving)
    stopped.add_callback(StopAt())
    stopped.train()
    assert stopped.state.global_step == 3
    resumed = run(tmp_path / "b", **saving)
    resumed.train(resume_from_checkpoint=True)
    for name in ("loss", "penalty", "p/attention_output"):
        assert logged(resumed, name) == logged(unbroken, name)
        assert len(logged(resumed, name)) == 6
    for ours, theirs in zip(resumed.model.parameters(), unbroken.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_rates_changed_by_hand_survive_a_resume(tmp_path):
    saving = {"save_strategy": "steps", "save_steps": 3}
    change = lambda handle: handle.update({"attention_output": td.Linear(0.2, 0.1)})  # noqa: E731
    run(tmp_path, handle_changes=[change], **saving).train()
    resumed = run(tmp_path, **saving)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert logged(resumed, "p/attention_output")[6] == pytest.approx(0.2 - 0.1 * 5 / 6)


def test_another_recipe_cannot_resume(tmp_path):
    run(tmp_path, save_strategy="steps", save_steps=3).train()
    model = tiny_model("gpt2")
    handle = td.regularize_(model, td.Recipe([td.Rule("attention_output", td.Dropout, p=0.1)]))
    other = trainer(tmp_path, model, handle, max_steps=6, per_device_train_batch_size=2)
    transformers.logging.set_verbosity(transformers.logging.CRITICAL)
    with pytest.raises(td.InputError, match="belongs to another recipe"):
        other.train(resume_from_checkpoint=True)


def test_the_checkpoint_is_a_model_that_loads_with_its_regularization(tmp_path):
    mine = run(tmp_path, save_strategy="steps", save_steps=6)
    mine.train()
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint-6")
    handle = td.load_regularized(tmp_path / "checkpoint-6", loaded)
    tokens = torch.stack([example["input_ids"] for example in examples()])
    assert handle.recipe == SCHEDULES
    assert torch.equal(loaded.eval()(tokens).logits, mine.model.eval()(tokens).logits)


def test_an_evaluation_measures_the_clean_gap_and_what_is_kept(tmp_path):
    mine = run(tmp_path, eval_strategy="steps", eval_steps=3)
    mine.train()
    metrics = mine.evaluate()
    clean = mine.evaluate(eval_dataset=mine.train_dataset)
    assert metrics["eval_train_loss"] == pytest.approx(clean["eval_loss"], rel=1e-6)
    assert metrics["eval_gap"] == metrics["eval_loss"] - metrics["eval_train_loss"]
    # The published shift keeps about two thirds at random, and above one half keeps all.
    assert 0.5 < metrics["eval_keep/mlp_output"] < 0.9 < metrics["eval_keep_eval/mlp_output"]
    assert list(logged(mine, "eval_gap")) == [3, 6]


def test_evaluations_do_not_move_the_training(tmp_path):
    often = run(tmp_path / "a", eval_strategy="steps", eval_steps=1)
    never = run(tmp_path / "b")
    # The Trainer's own evaluation draws one number for its data loader; the probe must not draw more.
    often.eval_dataset = never.eval_dataset
    often.train()
    with_probe = logged(often, "loss")
    without_probe = run(tmp_path / "c", eval_strategy="steps", eval_steps=1)
    without_probe.probe = 0
    without_probe.train()
    assert with_probe == logged(without_probe, "loss")
    assert not logged(without_probe, "eval_gap")


def test_the_probe_is_spread_over_the_training_data(tmp_path):
    mine = run(tmp_path)
    mine.probe = 4
    tokens = torch.cat([batch["input_ids"] for batch in mine.probe_loader])
    assert torch.equal(tokens, torch.stack([examples()[index]["input_ids"] for index in (0, 2, 4, 6)]))


def test_training_stops_when_the_gap_stays_above_the_bound(tmp_path):
    mine = run(tmp_path, eval_strategy="steps", eval_steps=1)
    mine.add_callback(GapStopping(-100.0, patience=2))
    mine.train()
    assert mine.state.global_step == 2
    assert mine.regularization.progress == pytest.approx(2 / 6)
    patient = run(tmp_path, eval_strategy="steps", eval_steps=1)
    patient.add_callback(GapStopping(100.0))
    patient.train()
    assert patient.state.global_step == 6


def test_only_gaps_in_a_row_stop():
    stopping, stopped = GapStopping(0.5, patience=2), []
    for gap in (1.0, 0.1, 1.0, 0.5, 1.0, 1.0):
        control = TrainerControl()
        stopping.on_evaluate(None, TrainerState(), control, metrics={"eval_gap": gap})
        stopped.append(control.should_training_stop)
    assert stopped == [False] * 5 + [True]


STEERING = td.Feedback(gap=0.01, gain=0.7, low=0.0, high=0.9)


@pytest.mark.parametrize("feedback", [STEERING, {"attention_output": STEERING}], ids=["all", "some"])
def test_the_gap_moves_the_rates(feedback, tmp_path):
    saving = {"save_strategy": "steps", "save_steps": 3, "eval_strategy": "steps", "eval_steps": 1}
    options = {"optional": {"feedback": feedback}, "learning_rate": 0.01, **saving}
    mine = run(tmp_path, **options)
    mine.train()
    gaps, rates = logged(mine, "eval_gap"), logged(mine, "p/attention_output")
    assert rates[1] == pytest.approx(0.4)
    for step in range(1, 6):
        expected = STEERING.next_rate(rates[step], 0.0, gaps[step])
        assert rates[step + 1] == pytest.approx(expected)
    assert len(set(rates.values())) > 3
    # The last evaluation has nothing left to steer, and one after the training neither.
    mine.evaluate()
    now = mine.regularization.metrics()["p/transformer.h.0.attn.resid_dropout/attention_output"]
    assert now == pytest.approx(rates[6])
    resumed = run(tmp_path, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert logged(resumed, "p/attention_output") == rates


def test_feedback_that_cannot_act_is_refused(tmp_path):
    with pytest.raises(td.InputError, match=r"'mlp_hidden' matches no layer with a rate; there are: p/trans"):
        run(tmp_path, optional={"feedback": {"mlp_hidden": STEERING}})
    model = tiny_model("llama")
    with pytest.raises(td.InputError, match="no layer of this regularization has one"):
        trainer(tmp_path, model, td.regularize_(model, PENALTY), optional={"feedback": STEERING})
    blind = run(tmp_path, eval_strategy="steps", eval_steps=1, optional={"feedback": STEERING, "probe": 0})
    with pytest.raises(td.InputError, match="has no eval_gap"):
        blind.train()


def test_stopping_on_a_gap_that_nobody_measures_is_an_error(tmp_path):
    model = tiny_model("gpt2")
    plain = Trainer(
        model,
        TrainingArguments(str(tmp_path), **ARGUMENTS),
        eval_dataset=examples(4),
        callbacks=[GapStopping(0.1)],
    )
    with pytest.raises(td.InputError, match="has no eval_gap; train with RegularizedTrainerMixin"):
        plain.evaluate()
    with pytest.raises(td.InputError, match="at least 1"):
        GapStopping(0.1, patience=0)


class Weights(TrainerCallback):
    """Moves the weight decay, and makes exact zeros."""

    def __init__(self):
        self.decays = []

    def on_step_begin(self, args, state, control, optimizer=None, **kwargs):
        td.set_weight_decay(optimizer, td.Linear(3.0, 0.0)(state.global_step / state.max_steps))
        self.decays.append([group["weight_decay"] for group in optimizer.param_groups])

    def on_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
        td.proximal_l1_(optimizer, 0.5)


def test_weight_decay_moves_and_zeros_are_exact_under_a_trainer(tmp_path):
    model, weights = tiny_model("llama"), Weights()
    arguments = TrainingArguments(str(tmp_path), max_steps=4, **ARGUMENTS)
    optimizer = torch.optim.AdamW(td.weight_decay_groups(model, 3.0), lr=1e-2)
    options = {"optimizers": (optimizer, None), "callbacks": [weights]}
    Trainer(model, arguments, train_dataset=examples(), **options).train()
    assert weights.decays == [[3.0, 0.0], [2.25, 0.0], [1.5, 0.0], [0.75, 0.0]]
    zeros = {path: (parameter == 0).float().mean() for path, parameter in model.named_parameters()}
    assert all(0.05 < share < 0.9 for path, share in zeros.items() if "proj" in path)
    assert all(share == 0 for path, share in zeros.items() if "norm" in path)


def test_one_of_several_evaluation_sets_stops_the_training(tmp_path):
    mine = run(tmp_path, eval_strategy="steps", eval_steps=1)
    mine.eval_dataset = {"seen": examples(), "unseen": examples(4, seed=2)}
    mine.add_callback(GapStopping(-100.0, patience=3, metric="eval_unseen_gap"))
    mine.train()
    assert mine.state.global_step == 3
    assert set(logged(mine, "eval_seen_gap")) == {1, 2, 3}


def test_a_gap_that_no_evaluation_set_has_is_refused_once_all_were_seen(tmp_path):
    mine = run(tmp_path, eval_strategy="steps", eval_steps=1)
    mine.eval_dataset = {"seen": examples(), "unseen": examples(4, seed=2)}
    mine.add_callback(GapStopping(-100.0, metric="eval_unsen_gap"))
    with pytest.raises(td.InputError, match="eval_unsen_gap"):
        mine.train()
    assert mine.state.global_step == 2


def test_the_patience_is_in_the_checkpoint():
    stopping = GapStopping(0.5, patience=3)
    stopping.waited = 2
    restored = GapStopping.from_state(json.loads(json.dumps(stopping.state())))
    assert vars(restored) == vars(stopping)


def test_the_best_checkpoint_brings_its_learned_layers_back(tmp_path):
    mine = run(
        tmp_path,
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="steps",
        save_steps=2,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        learning_rate=0.1,
    )
    mine.train()
    best = Path(mine.state.best_model_checkpoint)
    stored = td.load_regularized(best, transformers.AutoModelForCausalLM.from_pretrained(best))
    for ours, theirs in zip(mine.regularization.placed, stored.placed, strict=True):
        for key, tensor in ours.layer.state_dict().items():
            assert torch.equal(tensor, theirs.layer.state_dict()[key])


def test_the_callback_alone_moves_rates_and_refuses_penalties(tmp_path):
    model = tiny_model("llama")
    handle = td.regularize_(model, td.Recipe(SCHEDULES.rules[1:]))
    plain = Trainer(
        model,
        TrainingArguments(str(tmp_path), max_steps=2, **ARGUMENTS),
        train_dataset=examples(),
        callbacks=[RegularizationCallback(handle)],
    )
    plain.train()
    assert handle.progress == 1.0
    with pytest.raises(td.InputError, match="a callback cannot add them to the loss: write class"):
        RegularizationCallback(td.regularize_(tiny_model("llama"), SCHEDULES))


def test_a_regularization_of_another_model_is_refused(tmp_path):
    handle = td.regularize_(tiny_model("gpt2"), SCHEDULES)
    with pytest.raises(td.InputError, match="another model than the Trainer's"):
        trainer(tmp_path, tiny_model("gpt2"), handle)


# PEFT asks transformers by a name that transformers 5.23 has deprecated.
OLD_NAME = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")


def adapted(model):
    peft = pytest.importorskip("peft")
    return peft.get_peft_model(model, peft.LoraConfig(r=2, lora_dropout=0.1, target_modules=["q_proj"]))


@OLD_NAME
def test_layers_that_an_adapter_has_frozen_are_refused(tmp_path):
    model = tiny_model("llama")
    handle = td.regularize_(model, SCHEDULES)
    with pytest.raises(
        td.InputError, match=r"LearnedDropout at model\.layers\.0\.mlp is frozen .*on the PEFT model"
    ):
        trainer(tmp_path, adapted(model), handle)


@OLD_NAME
# The config of the base model is asked for on the hub, in vain.
@pytest.mark.filterwarnings("ignore:Could not find a config file in")
def test_a_resumed_adapter_brings_its_learned_layers_back(tmp_path):
    def adapter_run(folder):
        torch.manual_seed(0)
        model = adapted(tiny_model("llama"))
        handle = td.regularize_(model, SCHEDULES)
        saving = {"save_strategy": "steps", "save_steps": 3, "learning_rate": 0.1, "seed": 3}
        return trainer(folder, model, handle, max_steps=6, per_device_train_batch_size=2, **saving)

    unbroken = adapter_run(tmp_path / "a")
    unbroken.train()
    resumed = adapter_run(tmp_path / "b")
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-3"))
    assert not (tmp_path / "a" / "checkpoint-3" / "model.safetensors").exists()
    for name in ("loss", "penalty", "p/attention_output"):
        assert logged(resumed, name) == logged(unbroken, name)


def test_reentrant_checkpointing_is_refused_with_the_reason(tmp_path):
    options = {"activation_checkpointing": True, "activation_checkpointing_kwargs": {"use_reentrant": True}}
    with pytest.raises(td.InputError, match="use_reentrant=False"):
        run(tmp_path, **options).train()
    run(tmp_path, steps=1, activation_checkpointing=True).train()


if __name__ == "__main__":
    two_processes()

"""TRL's ``SFTTrainer``, where it is installed: ``pip install -c constraints.txt trl`` adds it alone."""

import pytest
import torch
import transformers
from transformers import TrainerCallback

import transformer_dropout as td
from transformer_dropout.audit.tiny_models import tiny_model
from transformer_dropout.integrations.hugging_face import RegularizedTrainerMixin

trl = pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")

pytestmark = pytest.mark.filterwarnings("ignore")
GATE = td.Rule("mlp_output", td.LearnedDropout, heads=4, shift=1.2, blocks=[0], weight=1.0)
MOVING = td.Recipe([GATE, td.Rule("attention_output", td.Dropout, p=td.Linear(0.4, 0.0))])


class MyTrainer(RegularizedTrainerMixin, trl.SFTTrainer):
    """What a user writes."""


class WithoutLoss(trl.SFTTrainer):
    """A trainer whose own loss has no gradient; asked for outputs, it makes a second forward for them."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        return (loss * 0, outputs) if return_outputs else loss * 0


class PenaltyTrainer(RegularizedTrainerMixin, WithoutLoss):
    """Only the penalty has a gradient."""


def gate(handle):
    return next(placed.layer for placed in handle.placed if placed.rule is GATE)


class Gradient(TrainerCallback):
    """Keeps the gate's gradient before the first step."""

    seen = None

    def __init__(self, handle):
        self.handle = handle

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        self.seen = gate(self.handle).shift.grad.clone() if self.seen is None else self.seen


@pytest.fixture(autouse=True)
def quiet():
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    yield
    transformers.logging.set_verbosity(before)
    datasets.enable_progress_bars()


def tokens(count=8, seed=1):
    return torch.randint(3, 64, (count, 8), generator=torch.Generator().manual_seed(seed))


def tokenizer():
    tokenizers = pytest.importorskip("tokenizers")
    words = tokenizers.models.WordLevel({f"w{n}": n for n in range(64)}, unk_token="w3")
    made = tokenizers.Tokenizer(words)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, pad_token="w0", eos_token="w2")


def trainer(kind, folder, *, recipe, family="llama", **arguments):
    rates = ["embd_pdrop", "resid_pdrop", "attn_pdrop"] if family == "gpt2" else []
    model = tiny_model(family, **dict.fromkeys(rates, 0.0))
    torch.manual_seed(7)
    handle = td.regularize_(model, recipe)
    options = {"report_to": [], "use_cpu": True, "bf16": False, "disable_tqdm": True, "logging_steps": 1}
    rows = [
        datasets.Dataset.from_list([{"input_ids": row.tolist()} for row in tokens(*p)])
        for p in ((8, 1), (4, 2))
    ]
    return kind(
        model,
        trl.SFTConfig(str(folder), max_length=None, **options, **arguments),
        regularization=handle,
        train_dataset=rows[0],
        eval_dataset=rows[1],
        processing_class=tokenizer(),
        callbacks=[Gradient(handle)],
    )


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("accumulation", [1, 4])
def test_the_penalty_has_the_same_gradient_at_every_accumulation(family, accumulation, tmp_path):
    mine = trainer(
        PenaltyTrainer,
        tmp_path,
        recipe=td.Recipe([GATE]),
        family=family,
        max_steps=1,
        save_strategy="no",
        per_device_train_batch_size=8 // accumulation,
        gradient_accumulation_steps=accumulation,
        max_grad_norm=0.0,
    )
    mine.train()
    found = next(c.seen for c in mine.callback_handler.callbacks if isinstance(c, Gradient))
    alone = trainer(MyTrainer, tmp_path, recipe=td.Recipe([GATE]), family=family)
    alone.model.train()(tokens())
    alone.regularization.penalty().backward()
    expected = gate(alone.regularization).shift.grad
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-8)


def test_a_run_is_measured_and_resumes_exactly(tmp_path):
    def run():
        saving = {"save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 2}
        # Smoothed targets take a second forward without gradients.
        smoothed = {"label_smoothing_factor": 0.1, "per_device_train_batch_size": 4}
        return trainer(MyTrainer, tmp_path, recipe=MOVING, max_steps=4, **saving, **smoothed)

    def logged(mine, name):
        return [line[name] for line in mine.state.log_history if name in line]

    unbroken, resumed = run(), run()
    unbroken.train()
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    for name in ("loss", "penalty", "p/attention_output"):
        assert logged(resumed, name) == logged(unbroken, name)
    assert logged(unbroken, "p/attention_output") == pytest.approx([0.4, 0.3, 0.2, 0.1])
    assert len(logged(unbroken, "eval_gap")) == 2

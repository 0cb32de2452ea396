"""Trainers of Hugging Face, TRL and Lightning report to a trial, in loops that nobody here wrote."""

import runpy
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset
from transformers import Trainer, TrainingArguments

import transformer_dropout as td
from transformer_dropout.audit.tiny_models import tiny_model
from transformer_dropout.errors import InputError
from transformer_dropout.integrations.hugging_face import TrialCallback, regularized_trainers
from transformer_dropout.runs.listener import Listener
from transformer_dropout.runs.record import read_metrics
from transformer_dropout.runs.run_trial import run_trial
from transformer_dropout.runs.trial_config import TrialConfig, load_arms, rules_of

pytestmark = pytest.mark.filterwarnings("ignore")
OWN = Path(__file__).parents[2] / "examples" / "own_training"
WINDOWS = [{"input_ids": row, "labels": row} for row in torch.arange(16 * 8).reshape(16, 8) % 60]


def arguments(folder, **changes):
    options = {"report_to": [], "use_cpu": True, "disable_tqdm": True, "save_strategy": "no", "max_steps": 4}
    options |= {"eval_strategy": "steps", "eval_steps": 2, "logging_steps": 2, "eval_on_start": True}
    return options | changes | {"output_dir": str(folder / "trainer")}


def rows(folder):
    return read_metrics(folder / "metrics.jsonl")


def test_a_trainer_reports_its_logs(tmp_path):
    trial = td.Trial(folder=tmp_path)
    trainer = Trainer(
        tiny_model("gpt2"),
        TrainingArguments(**arguments(tmp_path)),
        train_dataset=WINDOWS,
        eval_dataset=WINDOWS[:4],
        callbacks=[TrialCallback(trial)],
    )
    trainer.train()
    trial.finish(evaluate=trainer.evaluate)
    assert trial.steps == 4
    assert [row["step"] for row in rows(tmp_path)] == [0, 2, 4]
    assert rows(tmp_path)[0].keys() == {"step", "val_loss"}
    assert rows(tmp_path)[1].keys() == {"step", "loss", "grad_norm", "lr", "val_loss"}
    assert trial.records.content["result"]["val_loss"] == rows(tmp_path)[-1]["val_loss"]


def test_a_script_that_makes_its_own_trainer_is_regularized_and_reports(tmp_path):
    trial = td.Trial("gpt2", folder=tmp_path)
    with regularized_trainers(trial):
        trainer = Trainer(
            tiny_model("gpt2", embd_pdrop=0.0, resid_pdrop=0.0, attn_pdrop=0.0),
            TrainingArguments(**arguments(tmp_path)),
            train_dataset=WINDOWS,
            eval_dataset=WINDOWS[:4],
        )
        trainer.train()
    assert any(isinstance(module, td.Dropout) for module in trainer.model.modules())
    assert [row["step"] for row in rows(tmp_path)] == [0, 2, 4]
    silent = arguments(tmp_path, eval_strategy="no", eval_on_start=False)
    after = Trainer(tiny_model("gpt2"), TrainingArguments(**silent))
    assert not any(isinstance(module, td.Dropout) for module in after.model.modules())


def test_penalties_need_a_trainer_of_ones_own(tmp_path):
    recipe = td.Recipe([td.Rule("mlp_output", td.LearnedDropout, heads=2, weight=0.1)])
    trial = td.Trial(recipe, folder=tmp_path)
    silent = arguments(tmp_path, eval_strategy="no", eval_on_start=False)
    with regularized_trainers(trial), pytest.raises(InputError, match="a callback cannot add them"):
        Trainer(tiny_model("gpt2"), TrainingArguments(**silent))


def test_the_unmodified_script_of_the_examples_is_a_trial(tmp_path):
    arm = load_arms(OWN / "arms.yaml")[3]
    assert "dropout" not in (OWN / "train_gpt2.py").read_text().split("def main")[1]
    config = TrialConfig(
        function=f"{OWN / 'finetune.py'}:train", recipe=rules_of(arm.recipe), steps=4, seed=1
    )
    record = run_trial(config, tmp_path / "run", Listener())
    assert record["status"] == "finished"
    assert record["checks"]["recipe_applied"] is True
    assert record["result"]["step"] == 4
    assert rows(tmp_path / "run")[0]["step"] == 0
    assert runpy.run_path(str(OWN / "finetune.py"))["SCRIPT"].is_file()


def test_lora_by_trl_is_a_trial(tmp_path):
    trl, peft, datasets = map(pytest.importorskip, ("trl", "peft", "datasets"))
    tokenizers, transformers = map(pytest.importorskip, ("tokenizers", "transformers"))
    words = tokenizers.models.WordLevel({f"w{n}": n for n in range(64)}, unk_token="w3")
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer(words), pad_token="w0", eos_token="w2"
    )
    data = datasets.Dataset.from_list([{"input_ids": row["input_ids"].tolist()} for row in WINDOWS])

    def train(trial):
        torch.manual_seed(trial.seed)
        model = tiny_model("llama")
        with regularized_trainers(trial):
            trainer = trl.SFTTrainer(
                model,
                trl.SFTConfig(max_length=None, bf16=False, **arguments(tmp_path)),
                train_dataset=data,
                eval_dataset=data,
                processing_class=tokenizer,
                peft_config=peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"),
            )
        trainer.train()
        trainable = {name for name, weight in trainer.model.named_parameters() if weight.requires_grad}
        assert trainable and all("lora" in name for name in trainable)
        assert any(isinstance(module, td.Dropout) for module in trainer.model.modules())
        trial.finish(evaluate=trainer.evaluate)

    trial = td.Trial([{"select": "mlp_output", "layer": "Dropout", "p": 0.3}], folder=tmp_path, seed=2)
    train(trial)
    assert [row["step"] for row in rows(tmp_path)] == [0, 2, 4]
    assert trial.records.content["checks"]["repeatable"] is True


def test_lightning_reports_what_a_module_logs(tmp_path):
    from lightning.pytorch import LightningModule
    from lightning.pytorch import Trainer as LightningTrainer

    from transformer_dropout.integrations.lightning import TrialCallback as LightningTrialCallback

    class Module(LightningModule):
        def __init__(self):
            super().__init__()
            self.linear = torch.nn.Linear(4, 1)

        def training_step(self, batch, index):
            loss = (self.linear(batch[0]) - 1).square().mean()
            self.log("loss", loss)
            return loss

        def validation_step(self, batch, index):
            self.log("val_loss", (self.linear(batch[0]) - 1).square().mean())

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    trial = td.Trial(folder=tmp_path)
    loader = DataLoader(TensorDataset(torch.ones(8, 4)), batch_size=4)
    trainer = LightningTrainer(
        accelerator="cpu",
        max_epochs=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[LightningTrialCallback(trial)],
        default_root_dir=tmp_path,
    )
    module = Module()
    trainer.validate(module, loader, verbose=False)
    trainer.fit(module, loader, loader)
    trial.finish()
    assert trial.steps == 4
    assert [row["step"] for row in rows(tmp_path)] == [0, 2, 4]
    assert rows(tmp_path)[2].keys() == {"step", "val_loss", "loss"}
    assert rows(tmp_path)[2]["val_loss"] < rows(tmp_path)[0]["val_loss"]

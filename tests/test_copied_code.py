"""Every block of Python and YAML that the README and the pages show is run, here or in a test named here."""

import importlib.util
import re
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import DataLoader
from transformers import TrainingArguments

import transformer_dropout as td
from transformer_dropout.audit.tiny_models import tiny_inputs, tiny_model
from transformer_dropout.compare import trials
from transformer_dropout.compare.tuning import study
from transformer_dropout.compare.tuning import trials as tuned_trials
from transformer_dropout.compare.tuning.space import read_methods
from transformer_dropout.runs.default_arms import default_arms
from transformer_dropout.runs.run_config import load_run_config
from transformer_dropout.runs.trial_config import load_arms, rules_of
from transformer_dropout.tasks._mlp import MultilayerPerceptron
from transformer_dropout.tasks.language.decoder import Decoder, DecoderConfig

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
ELSEWHERE = {
    "README.md": "test_readme.py",
    "speed.md": "test_readme.py",
    "from_scratch.md": "test_pages.py and integrations/keras_checks.py",
}

# Raised inside transformers.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def blocks(page, kind="python"):
    """Return the blocks of a page in one language."""
    text = (page if isinstance(page, Path) else DOCS / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{kind}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def run(code, **scope):
    """Run a block with what it names, and return what it leaves."""
    scope = {"td": td, "torch": torch, **scope}
    exec(code, scope)
    return scope


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    """Blocks write where they are run."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)


@pytest.fixture
def gpt2():
    return tiny_model("gpt2").train()


@pytest.fixture
def batch(gpt2):
    inputs = tiny_inputs(gpt2)
    return inputs | {"labels": inputs["input_ids"]}


def run_here():
    """Return the pages whose names stand in a call of `blocks` in this file."""
    return set(re.findall(r'blocks\("([\w/.]+\.md)"', Path(__file__).read_text(encoding="utf-8")))


def test_every_page_with_code_is_run_somewhere():
    docs = (ROOT / "tests" / "test_docs.py").read_text(encoding="utf-8")
    for page in PAGES:
        name = str(page.relative_to(DOCS)) if page.is_relative_to(DOCS) else f"../{page.name}"
        if blocks(page) and name not in run_here() and page.name not in ELSEWHERE:
            assert page.parent.name == "layers" or f'    "{page.stem}",\n' in docs, f"nothing runs {name}"
        assert not blocks(page, "yaml") or name in run_here(), f"nothing reads the YAML of {name}"


def test_an_audit(gpt2):
    batch = tiny_inputs(gpt2)
    in_memory, in_a_test, contexts = blocks("audit.md")
    optimizer = torch.optim.AdamW(td.weight_decay_groups(gpt2, 0.1))
    regularization = td.regularize_(gpt2, td.recipes.gpt2())
    found = run(in_memory, model=gpt2, inputs=batch, optimizer=optimizer, regularization=regularization)
    assert found["report"].events
    regularization.remove()
    found = run(in_a_test, build_model=lambda: tiny_model("gpt2"), batch=batch)
    found["test_my_model_drops_what_it_should"]()
    assert run(contexts, model=gpt2, batch=batch)["result"].n == 20


def test_a_page_of_masks(gpt2):
    (code,) = blocks("masks.md")
    inputs = {name: value[:1] for name, value in tiny_inputs(gpt2).items()}
    words = [f"w{number}" for number in range(inputs["input_ids"].shape[1])]
    run(code, model=gpt2, inputs=inputs, words=words)
    assert "<html" in Path("masks.html").read_text(encoding="utf-8")


def test_the_placements_of_the_first_papers():
    (code,) = blocks("pages/placement.md")
    model = MultilayerPerceptron((64, 256, 256, 10))
    run(code, model=model)
    layers = [module for module in model.modules() if isinstance(module, td.Dropout)]
    assert [layer.p for layer in layers] == [0.2, 0.5, 0.5]


def test_a_loop_of_ones_own(gpt2, batch):
    code = blocks("training.md")[0]
    found = run(code, model=gpt2, recipe=td.recipes.learned(heads=4), loader=[batch] * 2, total_steps=2)
    found["loss"].backward()


@pytest.fixture
def trainer_scope(gpt2, batch):
    """What the blocks about the Trainer name."""
    rows = [{name: value[0] for name, value in batch.items()}] * 8
    args = TrainingArguments(
        "out",
        max_steps=2,
        eval_strategy="steps",
        eval_steps=1,
        report_to="none",
        use_cpu=True,
        save_strategy="no",
        disable_tqdm=True,
        per_device_train_batch_size=2,
    )
    return {"model": gpt2, "args": args, "train_examples": rows, "validation_examples": rows[:2]}


def test_the_trainer_of_hugging_face(trainer_scope):
    code = blocks("training.md")[1]
    regularization = td.regularize_(trainer_scope["model"], td.recipes.learned(heads=4))
    found = run(code, regularization=regularization, **trainer_scope)
    assert found["trainer"].state.global_step == 2
    assert any("eval_gap" in row for row in found["trainer"].state.log_history)


def test_a_weight_decay_that_moves(trainer_scope):
    trainer, code = blocks("training.md")[1:3]
    imports = trainer.partition("\n\n\n")[0]
    trainer_scope["args"].eval_strategy = "no"
    found = run(f"{imports}\n{code}", **trainer_scope)
    assert found["optimizer"].param_groups[0]["weight_decay"] == pytest.approx(0.05)


class Module(pl.LightningModule):
    """A LightningModule that knows nothing of its regularization."""

    def __init__(self):
        super().__init__()
        self.model = Decoder(20, DecoderConfig(width=16, heads=4, blocks=2, context=8))

    def training_step(self, batch, index):
        return self.model(batch, batch)

    def validation_step(self, batch, index):
        self.log("val_loss", self.model(batch, batch))

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters())


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:The `srun` command")  # Lightning's
def test_lightnings_trainer(monkeypatch):
    code = blocks("training.md")[3]
    module, batches = Module(), [torch.randint(20, (2, 8)) for _ in range(5)]
    quiet = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "barebones": False}
    quiet |= {"enable_progress_bar": False, "enable_model_summary": False}
    monkeypatch.setattr(pl, "Trainer", lambda real=pl.Trainer, **given: real(**given, **quiet))
    found = run(
        code,
        regularization=td.regularize_(module.model, td.recipes.learned(heads=4)),
        train_batches=batches,
        module=module,
        train_loader=DataLoader(batches, batch_size=None),
        validation_loader=DataLoader(batches[:1], batch_size=None),
    )
    assert "gap" in found["trainer"].callback_metrics


def test_the_dropout_of_an_adapter(gpt2):
    import peft

    (*_, code) = blocks("training.md")
    adapted = peft.get_peft_model(gpt2, peft.LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True))
    run(code, peft_model=adapted)
    assert sorted({module.p for module in adapted.modules() if isinstance(module, td.Dropout)}) == [0.1, 0.2]


HELPERS = """
from transformer_dropout.tasks.language.decoder import Decoder, DecoderConfig

TOKENS = torch.randint(20, (3, 9), generator=torch.Generator().manual_seed(0))


def make_model():
    return Decoder(20, DecoderConfig(width=16, heads=4, blocks=2, context=8))


def loss_of(model):
    return model(TOKENS[:, :-1], TOKENS[:, 1:])


def training_step(model, handle):
    (loss_of(model.train()) + handle.penalty()).backward()
    return 1.0


@torch.no_grad()
def evaluate(model):
    return float(loss_of(model.eval()))
"""


@pytest.fixture
def own_training(tmp_path):
    """The function of the page on one's own training, in a file with what it calls."""
    for name in ("train.py", "finetune.py"):
        (tmp_path / name).write_text(blocks("own_training.md")[0] + HELPERS, encoding="utf-8")
    spec = importlib.util.spec_from_file_location("own_training", tmp_path / "train.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_function_of_ones_own_is_a_trial(own_training):
    trial = td.Trial(td.recipes.lima(0.1), folder="runs/one", steps=100)
    own_training.train(trial)
    assert trial.finished and trial.step == 100


def test_functions_of_ones_own_are_compared(own_training, monkeypatch):
    asked = []

    def run_cells(cells, *rest, **more):
        asked.extend(cells)
        cells[0].folder.mkdir(parents=True)
        return []

    monkeypatch.setattr(trials, "run_cells", run_cells)
    found = run(blocks("own_training.md")[1], train=own_training.train)
    assert len(asked) == 15 and found["comparison"].arms == ("none", "gpt2", "lima")


def test_a_training_script_stays_as_it_is(tmp_path):
    trainer = (
        "trainer = Trainer(model, TrainingArguments('out', max_steps=1, report_to='none', use_cpu=True,"
        " disable_tqdm=True, save_strategy='no'), train_dataset=rows)\n"
    )
    script = (
        "from transformers import Trainer, TrainingArguments\n"
        "from transformer_dropout.audit.tiny_models import tiny_inputs, tiny_model\n"
        "model = tiny_model('gpt2')\n"
        "ids = tiny_inputs(model)['input_ids'][0]\n"
        "rows = [{'input_ids': ids, 'labels': ids}] * 8\n"
        f"{trainer}trainer.train()\n"
        "import transformer_dropout as td\n"
        "assert td.handle_of(model).recipe.rules\n"
    )
    (tmp_path / "run_clm.py").write_text(script, encoding="utf-8")
    trial = td.Trial("lima", folder="runs/one")
    run(blocks("own_training.md")[2])["train"](trial)
    assert trial.steps == 1


def test_a_search_from_python(own_training, monkeypatch):
    def search(methods, folder, engine, budget, **rest):
        for method in methods:
            found = study.open_study(folder, method.arm.slug(), budget)
            found.optimize(lambda t, m=method: sum(study.suggest_value(t, *s) for s in m.settings.items()), 2)

    monkeypatch.setattr(tuned_trials, "search", search)
    found = run(blocks("tuning.md")[0])["found"]
    assert [one.method.arm.name for one in found] == ["none", "lima"]
    assert 1e-5 <= found[0].best.values["lr"] <= 1e-3


def written(code, name):
    Path(name).write_text(code, encoding="utf-8")
    return Path(name)


def test_run_configs_are_read(tmp_path):
    for number, code in enumerate([*blocks("run_configs.md", "yaml"), *blocks("../README.md", "yaml")]):
        config = load_run_config(written(code, f"{number}.yaml"))
        assert config.recipe


def test_a_recipe_with_a_layer_of_ones_own(monkeypatch, tmp_path):
    (code,) = blocks("layers/README.md", "yaml")
    written("import transformer_dropout as td\n\n\nclass Mine(td.layers.RateLayer): ...\n", "my_layers.py")
    monkeypatch.syspath_prepend(tmp_path)
    mine = importlib.import_module("my_layers").Mine
    assert td.Recipe.from_yaml(code).rules[0].layer is mine


def test_a_file_of_arms():
    (code,) = blocks("own_training.md", "yaml")
    arms = load_arms(written(code, "arms.yaml"))
    assert [len(rules_of(arm.recipe)) for arm in arms] == [0, 2, 1]
    assert arms[2].settings == {"lr": 0.002}


def test_a_space_to_search():
    (code,) = blocks("tuning.md", "yaml")
    methods = read_methods(written(code, "space.yaml"), default_arms("language", {}))
    assert {method.arm.name for method in methods} == {"dropout p=0.1", "none"}
    assert all("training.lr" in method.settings for method in methods)

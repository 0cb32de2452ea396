"""Keys of `training` that change how a run trains or what it keeps: each resumes bit for bit."""

import pytest
import torch
from safetensors.torch import load_file

import transformer_dropout as td
from transformer_dropout.errors import InputError
from transformer_dropout.runs.checkpoint import checkpoint_folders
from transformer_dropout.runs.cost import count_cost
from transformer_dropout.runs.listener import Listener
from transformer_dropout.runs.loop import Training
from transformer_dropout.runs.processes import Processes
from transformer_dropout.runs.record import read_metrics
from transformer_dropout.runs.run import prepare, run
from transformer_dropout.runs.run_config import RunConfig
from transformer_dropout.runs.training_config import (
    EarlyStoppingConfig,
    ExpertsConfig,
    SelfTunedConfig,
    TrainingConfig,
)
from transformer_dropout.tasks.language.saved_model import load_model

ALONE = Processes(rank=0, size=1, device=torch.device("cpu"))
MEASURED = ("step_seconds", "peak_memory_bytes")
KEYS = {
    "ema": {"ema": 0.9},
    "ema that rises": {"ema": {"linear": {"start": 0.5, "end": 0.9}}},
    "token noise": {"token_noise": "0,0.3"},
    "both in R-Drop": {"ema": 0.8, "token_noise": 0.1, "rdrop": 1.0},
    "R-Drop in the last block": {"rdrop": 1.0, "rdrop_blocks": 1},
    "R-Drop with noise": {"rdrop": 1.0, "rdrop_view": "token_noise", "token_noise": 0.1},
    "R-Drop with learned masks": {"rdrop": 1.0, "rdrop_view": "learned"},
    "gates on a held-out part": {"held_out": 0.2},
    "cross-fitted gates": {"cross_fit": True},
    "gates on a held-out part now and then": {"held_out": 0.2, "held_out_every": 3},
    "self-tuned rates": {"self_tuned": SelfTunedConfig(share=0.2, every=3)},
    "experts": {"experts": ExpertsConfig(top_k=2)},
    "R-Drop with adversarial masks": {"rdrop": "0,1", "rdrop_view": "adversarial"},
}
ANCHORED = {"select": "mlp_output", "layer": "AnchoredDropout", "heads": 2, "lr_scale": 3.0, "weight": 0.1}
CROSS_FITTED = {"select": "mlp_output", "layer": "CrossFittedDropout", "heads": 2, "weight": 0.1}
ADVERSARIAL = {"select": "mlp_output", "layer": "AdversarialDropout", "heads": 2, "weight": 0.1}
RECIPES = {"learned": [ANCHORED], "adversarial": [ADVERSARIAL]}


class Killed(RuntimeError):
    """Stands for a kill between two steps."""


def rows(folder):
    lines = read_metrics(folder / "metrics.jsonl")
    return [{key: value for key, value in line.items() if key not in MEASURED} for line in lines]


def kill_at(step):
    def show(progress):
        if progress.step == step:
            raise Killed

    return Listener(progress=show)


def training_of(config):
    return Training(config, prepare(config), ALONE)


@pytest.mark.parametrize("keys", KEYS.values(), ids=KEYS)
def test_a_killed_run_ends_as_the_one_that_was_not(tmp_path, tiny, learned, keys, monkeypatch):
    monkeypatch.setattr("transformer_dropout.runs.run.SECONDS_BETWEEN_PROGRESS", 0)
    recipe = [CROSS_FITTED] if keys.get("cross_fit") else RECIPES.get(keys.get("rdrop_view"), learned)
    config = tiny(recipe=recipe, steps=12, eval_every=4, accumulation=2, **keys)
    whole = run(config, tmp_path / "whole")
    with pytest.raises(Killed):
        run(config, tmp_path / "killed", listener=kill_at(7))
    again = run(config, tmp_path / "killed", resume=True)
    assert again["result"] | {"wall_seconds": 0} == whole["result"] | {"wall_seconds": 0}
    assert rows(tmp_path / "killed") == rows(tmp_path / "whole")
    newest, wanted = (checkpoint_folders(tmp_path / name / "checkpoints")[0] for name in ("killed", "whole"))
    files = [path.relative_to(wanted) for path in wanted.glob("*.safetensors")]
    assert files and all((newest / file).read_bytes() == (wanted / file).read_bytes() for file in files)
    model = "model/model.safetensors"
    assert (tmp_path / "killed" / model).read_bytes() == (tmp_path / "whole" / model).read_bytes()


def test_newer_keys_leave_the_fingerprint_of_runs_without_them():
    data = RunConfig(name="a").to_data()["training"]
    assert not data.keys() & {key for keys in KEYS.values() for key in keys}


def test_the_averaged_weights_are_evaluated_and_kept_and_the_others_trained(tmp_path, tiny):
    config = tiny(ema=0.9, steps=12, eval_every=4)
    run(config, tmp_path / "averaged")
    run(tiny(steps=12, eval_every=4), tmp_path / "plain")
    averaged, plain = rows(tmp_path / "averaged"), rows(tmp_path / "plain")
    assert averaged[0]["val_loss"] == plain[0]["val_loss"]
    assert all(a["val_loss"] != p["val_loss"] for a, p in zip(averaged[1:], plain[1:], strict=True))
    checkpoint = tmp_path / "averaged" / "checkpoints" / "step-00000012"
    trained, average = (load_file(checkpoint / f"{name}.safetensors") for name in ("model", "average"))
    without = load_file(tmp_path / "plain" / "checkpoints" / "step-00000012" / "model.safetensors")
    assert all(trained[name].equal(value) for name, value in without.items())
    kept = load_file(tmp_path / "averaged" / "model" / "model.safetensors")
    assert all(average[name].equal(value) for name, value in kept.items())
    assert any(not trained[name].equal(value) for name, value in kept.items())


def test_the_averaged_weights_of_the_best_step_are_restored(tmp_path, tiny):
    stopping = EarlyStoppingConfig(patience=2)
    config = tiny(steps=200, eval_every=4, lr=0.2, min_lr=0.2, ema=0.5, early_stopping=stopping)
    result = run(config, tmp_path / "run")["result"]
    losses = {row["step"]: row["val_loss"] for row in rows(tmp_path / "run")}
    best = min(losses, key=losses.get)
    assert result["restored_step"] == best < result["step"]
    assert result["val_loss"] == losses[best]


def test_token_noise_is_in_training_alone_and_follows_its_schedule(tiny):
    training = training_of(tiny(token_noise="0,0.5", steps=20))
    seen = []
    training.model.embedding.token.register_forward_hook(lambda m, given, out: seen.append(given[0]))
    changed = []
    for _ in range(20):
        batch = training.training_batch(0)
        seen.clear()
        training.advance()
        changed.append((seen[0] != batch.inputs["tokens"]).double().mean().item())
    assert changed[0] == 0
    assert sum(changed[-5:]) / 5 == pytest.approx(0.45, abs=0.12)
    seen.clear()
    training.evaluate(twice=True)


def losses_of(tiny, recipe, **keys):
    """Return the loss of a batch under keys, the cross-entropies of its two views, and their scores."""
    training = training_of(tiny(recipe=recipe, **keys))
    # Masks that differ from their anchor, as after some training.
    for name, parameter in training.model.named_parameters():
        if "shift" in name:
            torch.nn.init.constant_(parameter, 2.0)
    seen = []
    original = training.objective.scores_and_classes

    def scored(model, batch):
        seen.append(original(model, batch))
        return seen[-1]

    training.objective.scores_and_classes = scored
    training.model.train()
    training.set_progress(5)
    batch = training.training_batch(0)
    return training.objective(training.model, batch), [logits for logits, _ in seen], batch.targets


def test_the_last_block_alone_sees_both_views_in_one_forward(tiny, learned):
    loss, scores, targets = losses_of(tiny, learned, rdrop=2.0, rdrop_blocks=1)
    (logits,) = scores
    assert len(logits) == 2 * len(targets)
    first, second = logits.chunk(2)
    assert not first.equal(second)
    assert loss == td.rdrop_loss(first, second, targets, 2.0) / 2


@pytest.mark.parametrize("view", ["learned", "adversarial"])
def test_the_first_view_is_plain_dropout_and_the_second_the_masks(tiny, view):
    loss, (first, second), targets = losses_of(tiny, RECIPES[view], rdrop=2.0, rdrop_view=view)
    assert not first.equal(second)
    expected = {
        "learned": td.rdrop_loss(first, second, targets, 2.0) / 2,
        "adversarial": td.adversarial_dropout_loss(first, second, targets, 2.0),
    }
    assert loss == expected[view]


def test_the_second_view_alone_has_the_noise(tiny):
    loss, (first, second), targets = losses_of(tiny, [], rdrop=2.0, rdrop_view="token_noise", token_noise=0.5)
    training = training_of(tiny())
    clean = training.model(training.training_batch(0).inputs["tokens"])
    assert first.equal(clean) and not second.equal(clean)
    assert loss == td.rdrop_loss(first, second, targets, 2.0) / 2


def test_views_of_masks_without_a_layer_for_them_are_refused_before_there_is_a_folder(tmp_path, tiny):
    with pytest.raises(InputError, match="no AnchoredDropout or AdversarialDropout"):
        run(tiny(rdrop=1.0, rdrop_view="learned"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_weights_never_train_on_the_held_out_part_and_the_gates_on_nothing_else(tiny, learned):
    training = training_of(tiny(recipe=learned, held_out=0.25, held_out_every=2))
    whole, examples = prepare(tiny()), training.examples
    kept, held = set(examples.splits.train.indices), set(examples.held_out.indices)
    assert kept | held == set(range(len(whole.train))) and not kept & held
    assert len(held) == round(0.25 * len(whole.train))
    used = {n for batch in range(20) for n in drawn(examples, examples.held_out_batch, batch)}
    assert used <= held and len(used) == min(80, len(held))
    names = dict(training.model.named_parameters())
    found = []
    original = training.optimizer.step

    def step():
        found.append({name: None if p.grad is None else p.grad.clone() for name, p in names.items()})
        original()

    training.optimizer.step = step
    losses = []
    original_loss = training.loss_of

    def loss_of(batch, loss):
        losses.append(len(batch.targets) * [loss is not training.objective])
        return original_loss(batch, loss)

    training.loss_of = loss_of
    training.advance()
    training.advance()
    gates = names.keys() - dict(training_of(tiny()).model.named_parameters()).keys()
    assert len(gates) == 2
    assert all(found[0][name] is not None for name in names)
    assert {name for name, gradient in found[1].items() if gradient is None} == gates
    assert losses == [4 * [False], 4 * [True], 4 * [False]]


def test_the_two_halves_alternate_and_the_gates_meet_the_same_examples(tiny):
    training = training_of(tiny(recipe=[CROSS_FITTED], cross_fit=True, steps=4))
    examples, layer = training.examples, training.regularization.placed[0].layer
    count = len(examples.splits.train)
    assert count % 2 == 0
    halves = [set(), set()]
    for step in range(2 * count // 4):
        seen = drawn(examples, examples.held_out_batch, step)
        assert seen == drawn(examples, examples.batch, step)
        for half in range(2):
            halves[half] |= set(seen[half::2])
    assert not halves[0] & halves[1]
    assert halves[0] | halves[1] == set(range(count))
    turned = []
    layer.register_forward_hook(lambda m, given, out: turned.append(m.turned))
    training.advance()
    assert turned == [False, True]
    assert all(p.grad is None for p in training.model.parameters())


def drawn(examples, draw, step):
    """Return which examples a step's batch is made of."""
    seen = []
    original = examples.task.batch
    examples.task.batch = lambda split, indices: seen.extend(indices) or original(split, indices)
    draw(step, 0)
    del examples.task.batch
    return seen


def test_self_tuned_rates_leave_those_of_the_recipe_and_are_recorded(tmp_path, tiny):
    recipe = [{"select": kind, "layer": "Dropout", "p": 0.3} for kind in ("mlp_output", "attention_output")]
    run(tiny(recipe=recipe, self_tuned=SelfTunedConfig(share=0.2, every=2)), tmp_path / "run")
    first, _, last = (row["rate_by_site"] for row in rows(tmp_path / "run"))
    assert all(rate == pytest.approx(0.3) for rate in first.values())
    assert all(0 < rate < 1 and rate != first[site] for site, rate in last.items())


def test_the_saved_model_has_its_experts(tmp_path, tiny, learned):
    config = tiny(recipe=learned, experts=ExpertsConfig(top_k=2))
    record = run(config, tmp_path / "run")
    model, _ = load_model(tmp_path / "run" / "model")
    assert len(model.blocks[0].mlp.expand) == 4
    windows = prepare(config).validation
    with torch.no_grad():
        loss = model(*windows.inputs_and_targets(range(len(windows)))).item()
    assert loss == pytest.approx(record["result"]["val_loss"], abs=1e-6)
    assert dropout_cli("generate", str(tmp_path / "run"), "--prompt", "The cat", "--tokens", "5") == 0


def test_experts_have_the_flops_of_the_mlp_and_their_router_and_their_balance_trains_them(tiny):
    plain, mixed = (count_cost(c, prepare(c)) for c in (tiny(), tiny(experts=ExpertsConfig(top_k=2))))
    router = 2 * 16 * 4
    assert mixed.inference_flops_per_item == plain.inference_flops_per_item + router
    assert mixed.parameters == plain.parameters + 8 * 16 * 16 * (4 / 2 - 1) + 16 * 4
    training = training_of(tiny(experts=ExpertsConfig(weight=0.5)))
    training.objective(training.model.train(), training.training_batch(0))
    assert training.objective.penalty().item() == pytest.approx(0.5, rel=0.5)


def test_experts_are_refused_where_the_mlps_are_pretrained():
    with pytest.raises(InputError, match="begins with pre-trained ones"):
        RunConfig(task="sentences", training=TrainingConfig(experts=ExpertsConfig()))


def dropout_cli(*words):
    from typer.testing import CliRunner

    from transformer_dropout.cli import app

    return CliRunner().invoke(app, list(words)).exit_code


def test_several_processes_are_refused_where_only_one_can_learn(tiny, learned):
    two = Processes(rank=0, size=2, device=torch.device("cpu"))
    config = tiny(recipe=learned, held_out=0.1)
    with pytest.raises(InputError, match=r"training.held_out trains in one process"):
        Training(config, prepare(config), two)


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"experts": {"top_k": 5}}, "training.experts.top_k is 5 of 4 experts"),
        ({"held_out": 1.0}, "training.held_out is 1.0, but it is a share from 0 to below 1."),
        ({"held_out_every": 2}, "training.held_out_every needs a share: training.held_out: 0.1."),
        ({"held_out": 0.1, "held_out_every": 0}, "training.held_out_every is 0"),
        ({"held_out": 0.1, "self_tuned": SelfTunedConfig()}, "do not go together; take one out."),
        ({"held_out": 0.1, "cross_fit": True}, "training.held_out and training.cross_fit do not go together"),
        ({"cross_fit": True, "batch": 5}, "training.batch 5 must be even."),
        ({"rdrop_view": "learned"}, "need a weight: training.rdrop: 1.0."),
        ({"rdrop": 1.0, "rdrop_view": "token_noise"}, "needs a rate: training.token_noise: 0.05."),
        ({"rdrop": 1.0, "rdrop_blocks": 0}, "training.rdrop_blocks is 0, but it is at least 1, or null."),
        ({"rdrop": 1.0, "rdrop_blocks": 1, "compile": True}, "goes with rdrop_view: dropout and compile"),
        ({"ema": 1.0}, "training.ema becomes 1, but it is a share from 0 to below 1."),
        ({"token_noise": -0.1}, "training.token_noise becomes -0.1"),
    ],
)
def test_what_does_not_fit_is_one_sentence(tiny, keys, sentence):
    with pytest.raises(InputError) as error:
        if isinstance(keys.get("experts"), dict):
            keys = {"experts": ExpertsConfig(**keys["experts"])}
        tiny(**keys)
    assert sentence in str(error.value) and "\n" not in str(error.value)


def test_token_noise_is_refused_where_there_are_no_tokens():
    with pytest.raises(InputError, match=r"token_noise replaces input tokens, and the task images has none"):
        RunConfig(task="images", training=TrainingConfig(token_noise=0.1))

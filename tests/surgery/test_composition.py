"""What a regularization is used together with: compilation, checkpointing, precision, processes, adapters."""

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

import transformer_dropout as td
from transformer_dropout import functional
from transformer_dropout.audit.tiny_models import tiny_model
from transformer_dropout.kernels import random
from transformer_dropout.kernels._native import pure_pytorch
from transformer_dropout.surgery.saved_recipe import LEARNED_FILE, learned_state, restore
from transformer_dropout.tasks.language.decoder import Decoder, DecoderConfig

MODELS = ("decoder", "gpt2", "llama")
LEARNED = td.Rule("mlp_output", td.LearnedDropout, heads=4, shift=1.2, weight=0.5)
MOVING = td.Linear(0.4, 0.0)
EVERYWHERE = td.Recipe(
    [
        LEARNED,
        *(td.Rule(kind, td.Dropout, p=MOVING) for kind in ("embedding", "attention_weights", "classifier")),
        td.Rule("attention_output", td.DropPath, p=MOVING, depth=td.Linear(0.5, 1.0)),
        td.Rule("mlp_hidden", td.GaussianDropout, p=MOVING),
    ]
)
# The learned masks alone: every rate of the models' own is 0.
STILL = td.Recipe(
    [
        LEARNED,
        *(td.Rule(k, td.Dropout, p=0.0) for k in ("attention_weights", "embedding", "attention_output")),
    ]
)


def regularized(name, recipe=EVERYWHERE):
    """Return a model in training mode and its handle; the same at every call."""
    torch.manual_seed(0)
    if name == "decoder":
        model = Decoder(64, DecoderConfig(width=32, heads=4, blocks=2, context=8))
    else:
        model = tiny_model(name)
    handle = td.regularize_(model, recipe)
    return model.train(), handle


def tokens(count=4):
    return torch.randint(3, 64, (count, 8), generator=torch.Generator().manual_seed(1))


def loss_of(model, batch):
    output = (
        model(batch, batch) if "Decoder" in type(unwrapped(model)).__name__ else model(batch, labels=batch)
    )
    return output if isinstance(output, torch.Tensor) else output.loss


def unwrapped(model):
    return getattr(model, "module", getattr(model, "_orig_mod", model))


def step(model, handle, *, seed=3, batch=None):
    """Return loss, penalty and gradients of one forward and backward."""
    torch.manual_seed(seed)
    model.zero_grad()
    loss = loss_of(model, tokens() if batch is None else batch)
    penalty = handle.penalty()
    (loss + penalty).backward()
    gradients = {name: p.grad.clone() for name, p in handle.model.named_parameters() if p.grad is not None}
    return loss.detach(), penalty.detach(), gradients


def assert_same(found, expected, **tolerance):
    torch.testing.assert_close(found[0], expected[0], **tolerance)
    torch.testing.assert_close(found[1], expected[1], **tolerance)
    assert found[2].keys() == expected[2].keys()
    for name, gradient in expected[2].items():
        torch.testing.assert_close(found[2][name], gradient, msg=lambda m, n=name: f"{n}: {m}", **tolerance)


# --- torch.compile


# GPT-2's loss breaks the graph, in a plain model too, and the compiler then looks at a gradient that is none.
BROKEN_GRAPH = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")


@pytest.fixture
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@BROKEN_GRAPH
@pytest.mark.parametrize("name", MODELS)
def test_moving_rates_compile_once(name, fresh_compiler):
    model, handle = regularized(name)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, backend=counter)
    step(compiled, handle)
    graphs = counter.frame_count
    for progress in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0):
        handle.set_progress(progress)
        step(compiled, handle)
    assert counter.frame_count == graphs


@BROKEN_GRAPH
@pytest.mark.parametrize("name", MODELS)
def test_a_compiled_model_has_the_same_gradients(name, fresh_compiler):
    expected = step(*regularized(name, td.Recipe([LEARNED])))
    model, handle = regularized(name, td.Recipe([LEARNED]))
    assert_same(step(torch.compile(model, backend="aot_eager"), handle), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
# Inductor's own import.
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning")
def test_inductor_trains_with_moving_rates(fresh_compiler):
    model, handle = regularized("decoder")
    compiled = torch.compile(model, dynamic=False)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for progress in (0.0, 0.3, 0.6, 1.0):
            handle.set_progress(progress)
            loss, penalty, gradients = step(compiled, handle, seed=int(10 * progress))
            assert torch.isfinite(loss)
            assert 0 < penalty < 0.5
            assert all(torch.isfinite(gradient).all() for gradient in gradients.values())
    # At progress 1 every rate is 0, and the gates of the same seed alone remain random.
    assert gradients["blocks.0.mlp.mlp_output_dropout.shift"].abs().max() > 0


# --- activation checkpointing


def checkpointed(name, model, reentrant):
    """Let a model forget its activations and compute them again in the backward pass."""
    if name != "decoder":
        model.activation_checkpointing_enable({"use_reentrant": reentrant})
        return
    for block in model.blocks:
        # Only the module's call, hooks included, as checkpointing libraries wrap it.
        block.forward = Recomputed(block.forward, reentrant)


class Recomputed:
    """A forward under activation checkpointing."""

    def __init__(self, forward, reentrant):
        self.forward, self.reentrant = forward, reentrant

    def __call__(self, x):
        return checkpoint(self.forward, x, use_reentrant=self.reentrant)


@pytest.mark.parametrize("name", MODELS)
def test_checkpointing_leaves_gradients_and_penalty_as_they_are(name):
    expected = step(*regularized(name))
    model, handle = regularized(name)
    checkpointed(name, model, reentrant=False)
    assert_same(step(model, handle), expected, rtol=1e-6, atol=1e-8)
    assert all(placed.layer.pending_penalty is None for placed in handle.placed if placed.rule is LEARNED)


@pytest.mark.parametrize("name", MODELS)
def test_reentrant_checkpointing_is_refused_with_the_reason(name):
    model, handle = regularized(name)
    checkpointed(name, model, reentrant=True)
    with pytest.raises(td.InputError, match=r"Reentrant activation checkpointing .* use_reentrant=False"):
        step(model, handle)


# --- accumulation and precision


@pytest.fixture
def fixed_masks(monkeypatch):
    """Masks that follow from the input, with the gradient that sampled ones have."""
    monkeypatch.setattr(random, "uniform", halves)
    with pure_pytorch():
        yield


def halves(key, count, start=0, made=None):
    """Draws that are all one half."""
    return torch.full((count,), 0.5)


@pytest.mark.parametrize("name", MODELS)
def test_accumulated_gradients_are_those_of_the_whole_batch(name, fixed_masks):
    whole = step(*regularized(name, STILL))
    model, handle = regularized(name, STILL)
    for part in tokens().split(2):
        ((loss_of(model, part) + handle.penalty()) / 2).backward()
    for path, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, whole[2][path], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("pure", [False, True])
def test_masks_are_exact_in_bfloat16(name, pure):
    model, handle = regularized(name)
    if pure:
        model.to(torch.bfloat16)
    masks = []
    for placed in handle.placed:
        placed.layer.observer = lambda keep_probability, mask: masks.append(mask.detach())
    with torch.autocast("cpu", torch.bfloat16, enabled=not pure):
        loss = loss_of(model, tokens())
        penalty = handle.penalty()
    (loss + penalty).backward()
    assert len(masks) == 2
    for mask in masks:
        assert set(mask.unique().tolist()) == {0.0, 1.0}
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    gate = handle.placed[[p.rule is LEARNED for p in handle.placed].index(True)].layer
    assert gate.qkv.weight.grad.abs().max() > 0
    assert gate.qkv.weight.dtype == (torch.bfloat16 if pure else torch.float32)


# --- several processes

CASES = ("decoder/ddp", "decoder/fsdp", "llama/ddp", "llama/fsdp")


def sharded(model):
    """Shard a model with FSDP2, block by block."""
    for block in model.blocks if isinstance(model, Decoder) else model.model.layers:
        fully_shard(block)
    return fully_shard(model)


def whole(tensor):
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def gradients_of_process(name, kind, rank):
    """Return the gradients that this process has for its half of the batch, whole."""
    model, handle = regularized(name, STILL)
    called = DistributedDataParallel(model) if kind == "ddp" else sharded(model)
    half = tokens().chunk(2)[rank]
    (loss_of(called, half) + handle.penalty()).backward()
    return {name: whole(parameter.grad).clone() for name, parameter in model.named_parameters()}


def masks_of_process(name, kind, rank):
    """Return the learned masks of one training forward on the whole batch."""
    model, handle = regularized(name, EVERYWHERE)
    called = DistributedDataParallel(model) if kind == "ddp" else sharded(model)
    masks = []
    for placed in handle.placed:
        placed.layer.observer = lambda keep_probability, mask: masks.append(mask.detach().clone())
    torch.manual_seed(rank + 1)
    (loss_of(called, tokens()) + handle.penalty()).backward()
    return masks


def pulled_gradients(name, share=lambda model: model, part=slice(None)):
    """Return gradients and weights under mixed weights and penalties on weights.

    The penalties are made once before the model is shared out, and once after.
    """
    model, _ = regularized(name, td.Recipe())
    start = {key: 0.9 * value + 0.01 for key, value in model.state_dict().items()}
    mixed = td.mixout_(model, 0.5, pretrained=start, select="*0.*weight")
    terms = penalties_of(model, start)
    called = share(model)
    terms += penalties_of(model, start)
    loss = loss_of(called, tokens()[part])
    value = sum(term() for term in terms)
    (loss + value).backward()
    gradients = {path: whole(parameter.grad).clone() for path, parameter in model.named_parameters()}
    td.proximal_l1_(terms[0].parameters, 1.0, lr=0.01)
    assert mixed.unreached == []
    return value.detach(), gradients, {path: whole(p.detach()) for path, p in model.named_parameters()}


def penalties_of(model, start):
    net = td.ElasticNet(model, 0.01, l1_ratio=0.3)
    return [td.L1(model, 0.001), td.L2(model, 0.1), net, td.L2SP(model, 0.1, pretrained=start)]


def dropped_below_zero(x, p):
    """A dropout whose mask follows from the input."""
    return x * (x > 0) / (1 - p) if p else x


def save_sharded(folder):
    """Save learned layers from shards, forget them, and read them back into the shards."""
    model, handle = regularized("llama", td.Recipe([LEARNED]))
    expected = {key: tensor.detach().clone() for key, tensor in learned_state(handle).items()}
    sharded(model)
    td.save_regularized(folder, handle)
    dist.barrier()
    for tensor in learned_state(handle).values():
        tensor.data.zero_()
    restore(learned_state(handle), folder / LEARNED_FILE)
    for key, tensor in learned_state(handle).items():
        assert torch.equal(tensor.full_tensor(), expected[key])


def two_processes():
    """The worker of the test below: write this process's gradients and masks."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, uniform, dropout = dist.get_rank(), random.uniform, functional.dropout
    found = {}
    for case in CASES:
        name, kind = case.split("/")
        random.uniform = halves
        with pure_pytorch():
            gradients = gradients_of_process(name, kind, rank)
        random.uniform = uniform
        found[case] = gradients, masks_of_process(name, kind, rank)
        share = DistributedDataParallel if kind == "ddp" else sharded
        functional.dropout = dropped_below_zero
        found[case] += pulled_gradients(name, share, slice(2 * rank, 2 * rank + 2))
        functional.dropout = dropout
    save_sharded(Path(f"{sys.argv[1]}.saved"))
    torch.save(found, f"{sys.argv[1]}.{rank}")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_have_the_gradients_of_one_and_masks_of_their_own(
    tmp_path, environment, fixed_masks, monkeypatch
):
    monkeypatch.setattr(functional, "dropout", dropped_below_zero)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    file = str(tmp_path / "found")
    done = subprocess.run([*command, __file__, file], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = torch.load(f"{file}.0"), torch.load(f"{file}.1")
    for case in CASES:
        expected = step(*regularized(case.split("/")[0], STILL))[2]
        (gradients, masks, *pulled), (others, other_masks, *other_pulled) = first[case], second[case]
        for found in (pulled, other_pulled):
            assert_same(found, pulled_gradients(case.split("/")[0]), rtol=1e-4, atol=1e-6)
        assert gradients.keys() == expected.keys()
        for name, gradient in expected.items():
            for found in (gradients[name], others[name]):
                torch.testing.assert_close(
                    found, gradient, rtol=1e-4, atol=1e-7, msg=lambda m, n=name, c=case: f"{c} {n}: {m}"
                )
        for mask, other in zip(masks, other_masks, strict=True):
            assert 0.1 < (mask != other).float().mean() < 0.6
    # What was saved from shards is whole.
    saved = td.load_regularized(f"{file}.saved", tiny_model("llama"))
    state = learned_state(regularized("llama", td.Recipe([LEARNED]))[1])
    assert all(torch.equal(tensor, state[key]) for key, tensor in learned_state(saved).items())


# --- adapters


def adapted(model, dropout=0.1):
    """Return the PEFT model with LoRA on the attention's input projections."""
    peft = pytest.importorskip("peft")
    names = ["c_attn"] if model.config.model_type == "gpt2" else ["q_proj", "v_proj"]
    # GPT-2's projections are stored transposed.
    transposed = model.config.model_type == "gpt2"
    config = peft.LoraConfig(r=2, lora_dropout=dropout, target_modules=names, fan_in_fan_out=transposed)
    return peft.get_peft_model(model, config)


RATES = td.Recipe(EVERYWHERE.rules[1:])
# PEFT asks transformers by a name that transformers 5.23 has deprecated.
OLD_NAME = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")


@OLD_NAME
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_rates_placed_before_an_adapter_go_on_acting(name):
    model, handle = regularized(name, RATES)
    model = adapted(model).train()
    assert all(torch.isfinite(p.grad).all() for p in backward(model, handle))
    outputs = [loss_of(model, tokens()) for _ in range(2)]
    assert outputs[0] != outputs[1]
    handle.set_progress(1.0)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    assert loss_of(model, tokens()) == loss_of(model, tokens())


def backward(model, handle):
    """Make one backward pass; return the parameters with a gradient."""
    (loss_of(model, tokens()) + handle.penalty()).backward()
    return [parameter for parameter in model.parameters() if parameter.grad is not None]


@OLD_NAME
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_learned_layers_placed_on_a_model_with_an_adapter_train(name):
    model = adapted(tiny_model(name)).train()
    trained = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    handle = td.regularize_(model, EVERYWHERE)
    gates = {id(p) for placed in handle.placed for p in placed.layer.parameters()}
    assert len(gates) == 4
    assert {id(parameter) for parameter in backward(model, handle)} == trained | gates
    adapter_keys = set(model.state_dict())
    handle.remove()
    assert adapter_keys > set(model.state_dict())


@OLD_NAME
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_an_adapters_own_dropout_has_a_rate_by_layer(name):
    model = adapted(tiny_model(name)).train()
    handle = td.regularize_(model, td.Recipe([td.Rule("lora", td.Dropout, p=0.4, depth=td.Linear(0.5, 1.0))]))
    rates = {placed.site.block: placed.layer.p for placed in handle.placed}
    assert rates == pytest.approx({0: 0.2, 1: 0.4})
    dropped = []
    for placed in handle.placed:
        placed.layer.register_forward_hook(lambda layer, args, out: dropped.append((out == 0).float().mean()))
    loss_of(model, torch.cat([tokens()] * 8))
    assert len(dropped) == len(handle.placed)
    found = torch.stack(dropped).unflatten(0, (2, -1)).mean(1)
    assert found.tolist() == pytest.approx([0.2, 0.4], abs=0.03)


# --- resuming, copying, exporting


@pytest.mark.parametrize("name", MODELS)
def test_a_run_resumed_in_the_middle_of_a_schedule_repeats_itself(name):
    def advance(model, handle, optimizer, steps):
        losses = []
        for index in steps:
            handle.set_progress(index / 6)
            loss = loss_of(model, tokens())
            (loss + handle.penalty()).backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append((loss.item(), *handle.metrics().values()))
        return losses

    model, handle = regularized(name)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    handle.update({"classifier": td.Cosine(0.5, 0.1)})
    advance(model, handle, optimizer, range(3))
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict(), handle.state_dict()))
    random = torch.get_rng_state()
    expected = advance(model, handle, optimizer, range(3, 6))

    model, handle = regularized(name)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    model.load_state_dict(saved[0])
    optimizer.load_state_dict(saved[1])
    handle.load_state_dict(saved[2])
    assert handle.progress == pytest.approx(2 / 6)
    torch.set_rng_state(random)
    assert advance(model, handle, optimizer, range(3, 6)) == expected


@pytest.mark.parametrize("name", MODELS)
def test_a_deep_copy_runs_its_own_layers(name):
    model, handle = regularized(name, STILL)
    loss_of(model, tokens())
    copied = copy.deepcopy(model)
    torch.manual_seed(2)
    expected = loss_of(copied, tokens())
    with torch.no_grad():
        for placed in handle.placed:
            for parameter in placed.layer.parameters():
                parameter.fill_(3.0)
    torch.manual_seed(2)
    assert loss_of(copied, tokens()) == expected
    own = {name: module for name, module in copied.named_modules() if isinstance(module, td.LearnedDropout)}
    assert len(own) == 2
    assert not {id(module) for module in own.values()} & {id(placed.layer) for placed in handle.placed}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_with_learned_masks_is_exported_in_evaluation(name):
    model, _ = regularized(name, td.Recipe([LEARNED]))
    model.eval()
    options = {} if name == "decoder" else {"use_cache": False}
    exported = torch.export.export(model, (tokens(),), options, strict=False).module()
    other = tokens().flip(0)
    ours, theirs = model(other, **options), exported(other, **options)
    ours, theirs = (out if isinstance(out, torch.Tensor) else out.logits for out in (ours, theirs))
    torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=1e-6)
    plain = copy.deepcopy(model)
    for module in plain.modules():
        if isinstance(module, td.LearnedDropout):
            module.shift.data.fill_(3.0)
    changed = plain(other, **options)
    assert not torch.allclose(changed if isinstance(changed, torch.Tensor) else changed.logits, ours)


if __name__ == "__main__":
    two_processes()

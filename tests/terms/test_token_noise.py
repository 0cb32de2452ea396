"""Random tokens in place of some: the rate, what comes in, padding, and models of several shapes."""

import pytest
import torch
from torch import nn

import transformer_dropout as td
from transformer_dropout.tasks.language.decoder import Decoder, DecoderConfig
from transformer_dropout.terms.token_noise import token_noise

VOCABULARY = 23


def tokens(batch=64, length=32, seed=0):
    return torch.randint(VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("p", [0.0, 0.05, 0.5, 1.0])
def test_a_share_of_the_tokens_changes(p):
    ids = torch.arange(64 * 320).view(64, 320)
    changed = token_noise(ids, p) != ids
    assert changed.float().mean().item() == pytest.approx(p, abs=0.015)
    if p == 0:
        assert not changed.any()


def test_what_comes_in_is_as_frequent_as_in_the_batch():
    ids = torch.tensor([0] * 70 + [1] * 20 + [2] * 10).repeat(400)
    came = token_noise(ids, 1.0)
    shares = torch.bincount(came, minlength=3) / len(ids)
    torch.testing.assert_close(shares, torch.tensor([0.7, 0.2, 0.1]), atol=0.01, rtol=0)


def test_padding_is_neither_replaced_nor_drawn():
    ids, real = torch.arange(200).view(10, 20), torch.ones(10, 20, dtype=torch.bool)
    real[:, 15:] = False
    real[3] = False
    drawn = set()
    for _ in range(60):
        came = token_noise(ids, 1.0, real)
        assert torch.equal(came[~real], ids[~real])
        drawn |= set(came[real].tolist())
    assert drawn == set(ids[real].tolist())
    nothing = torch.zeros(10, 20)
    assert torch.equal(token_noise(ids, 1.0, nothing), ids)


class Reading(nn.Module):
    """An embedding that keeps what it was given, inside a model that takes a mask."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 4)
        self.embedding.register_forward_hook(lambda m, given, output: setattr(self, "read", given[0]))

    def forward(self, ids, attention_mask=None):
        return self.embedding(ids).sum()


def test_a_model_reads_noise_in_training_only_and_its_own_tokens_when_it_is_removed():
    model, ids = Reading(), tokens()
    handle = td.token_noise_(model, 0.3)
    model(ids)
    assert (model.read != ids).float().mean().item() == pytest.approx(0.3 * 22 / 23, abs=0.03)
    model.eval()(ids)
    assert torch.equal(model.read, ids)
    handle.remove()
    model.train()(ids)
    assert torch.equal(model.read, ids) and not model.embedding._forward_pre_hooks


def test_an_embedding_that_is_called_by_keyword_reads_noise():
    model, ids = nn.Embedding(VOCABULARY, 4), tokens()
    read = []
    td.token_noise_(model, 0.3)
    model.register_forward_hook(lambda m, given, named, output: read.append(named["input"]), with_kwargs=True)
    model(input=ids)
    assert (read[0] != ids).float().mean().item() == pytest.approx(0.3 * 22 / 23, abs=0.03)


def test_a_schedule_moves_it():
    model, ids = Reading(), tokens()
    handle = td.token_noise_(model, td.Linear(0.0, 1.0))
    model(ids)
    assert torch.equal(model.read, ids)
    handle.set_progress(0.5)
    assert handle.p == 0.5
    model(ids)
    assert (model.read != ids).any()


def test_the_mask_of_the_model_around_it_says_what_is_padding():
    model, ids = Reading(), tokens()
    td.token_noise_(model, 1.0)
    mask = torch.ones_like(ids)
    mask[:, :10] = 0
    model(ids, attention_mask=mask)
    assert torch.equal(model.read[:, :10], ids[:, :10])
    assert (model.read != ids)[:, 10:].float().mean() > 0.9


def test_special_tokens_are_kept():
    model, ids = Reading(), tokens()
    td.token_noise_(model, 1.0, keep=[0, 5])
    model(ids)
    for special in (0, 5):
        assert torch.equal(model.read == special, ids == special)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_one_compiled_graph_serves_every_rate(backend):
    from torch._dynamo.testing import CompileCounterWithBackend

    torch._dynamo.reset()
    model, ids = nn.Sequential(nn.Embedding(VOCABULARY, 4)), tokens()
    handle = td.token_noise_(model, td.Linear(0.0, 1.0))
    counter = CompileCounterWithBackend(backend)
    run = torch.compile(model, backend=counter, fullgraph=True)
    plain = nn.functional.embedding(ids, model[0].weight)
    for progress in (0.0, 0.25, 0.75, 1.0):
        handle.set_progress(progress)
        changed = (run(ids) != plain).any(dim=-1).float().mean().item()
        assert changed == pytest.approx(progress * 22 / 23, abs=0.04)
    assert counter.frame_count == 1
    torch._dynamo.reset()


def test_the_reference_decoder_trains_with_it():
    torch.manual_seed(0)
    model = Decoder(VOCABULARY, DecoderConfig(width=8, heads=2, blocks=1, context=16))
    with pytest.raises(td.InputError, match=r"embedding\.token, embedding\.position"):
        td.token_noise_(nn.ModuleDict({"embedding": model.embedding}), 0.1)
    handle = td.token_noise_(model, 0.5)
    ids = tokens(length=16)
    losses = {model(ids, ids).item() for _ in range(3)}
    assert len(losses) == 3
    with handle.off():
        assert len({model(ids, ids).item() for _ in range(3)}) == 1
    assert model(ids, ids).item() != model(ids, ids).item()
    model.eval()
    assert len({model(ids, ids).item() for _ in range(3)}) == 1


def test_a_module_that_is_not_given_ids_is_refused():
    model = nn.Sequential(nn.Embedding(VOCABULARY, 4), nn.Linear(4, 4))
    td.token_noise_(model, 0.1, embedding="1")
    with pytest.raises(td.InputError, match="replaces token ids"):
        model(tokens())


@pytest.mark.parametrize("p", [-0.1, 1.5])
def test_a_rate_that_is_no_probability_is_refused(p):
    with pytest.raises(td.InputError, match="between 0 and 1"):
        td.token_noise_(Reading(), p)


def test_families_that_no_table_names_read_noise():
    transformers = pytest.importorskip("transformers")
    config = transformers.GPTNeoXConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
    )
    model = transformers.GPTNeoXForCausalLM(config).train()
    seen = []
    model.get_input_embeddings().register_forward_hook(lambda m, given, output: seen.append(given[0]))
    td.token_noise_(model, 1.0)
    ids, mask = tokens(4, 9), torch.ones(4, 9, dtype=torch.long)
    mask[:, :3] = 0
    model(input_ids=ids, attention_mask=mask)
    assert torch.equal(seen[0][:, :3], ids[:, :3]) and not torch.equal(seen[0], ids)

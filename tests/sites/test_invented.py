"""Models of a kind that nothing here was built for: their places, at rate 0 and with layers."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import transformer_dropout as td

WIDTH, WORDS = 8, 30
IDS = torch.arange(20).view(2, 10)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(x).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.out(mixed.transpose(1, 2).flatten(2))


class Einsum(nn.Module):
    """Attention without a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Parameter(torch.randn(3, WIDTH, 2, 4) * 0.3)
        self.out = nn.Parameter(torch.randn(2, 4, WIDTH) * 0.3)
        self.drop = nn.Dropout(0.2)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (torch.einsum("btw,whd->bhtd", x, weight) for weight in self.qkv)
        weights = self.drop(torch.einsum("bhqd,bhkd->bhqk", query, key).softmax(-1))
        return torch.einsum("bhtd,hdw->btw", torch.einsum("bhqk,bhkd->bhqd", weights, value), self.out)


class Block(nn.Module):
    attention: type[nn.Module] = Attention

    def __init__(self) -> None:
        super().__init__()
        self.attend = self.attention()
        self.up, self.down, self.drop = nn.Linear(WIDTH, 16), nn.Linear(16, WIDTH), nn.Dropout(0.2)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop(self.attend(x))
        return x + self.drop(self.down(self.up(x).relu()))


class BlockOfEinsums(Block):
    attention = Einsum


class Parallel(Block):
    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop(self.attend(x) + self.down(self.up(x).relu()))


class GPT(nn.Module):
    """The output layer first and the dropout last."""

    def __init__(self, block: type[nn.Module] = Block, *, shared: bool = False) -> None:
        super().__init__()
        self.head = nn.Linear(WIDTH, WORDS)
        self.blocks = nn.ModuleList(block() for _ in range(2))
        self.token, self.dropout = nn.Embedding(WORDS, WIDTH), nn.Dropout(0.3)
        for part in self.blocks if shared else ():
            part.drop = self.dropout

    def forward(self, ids: Tensor) -> Tensor:
        x = self.dropout(self.token(ids))
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class Mixing(nn.Module):
    """A block of an MLP-mixer: nothing attends."""

    def __init__(self) -> None:
        super().__init__()
        self.among, self.back = nn.Linear(16, 24), nn.Linear(24, 16)
        self.up, self.down, self.drop = nn.Linear(WIDTH, 16), nn.Linear(16, WIDTH), nn.Dropout(0.2)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop(self.back(self.among(x.transpose(1, 2)).relu())).transpose(1, 2)
        return x + self.drop(self.down(self.up(x).relu()))


class Mixer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch, self.head = nn.Conv2d(3, WIDTH, 4, 4), nn.Linear(WIDTH, 5)
        self.blocks = nn.Sequential(Mixing(), Mixing())

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.patch(x).flatten(2).transpose(1, 2)).mean(1))


class Recurrent(nn.Module):
    """One dropout before and behind an LSTM that drops between its layers."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.drop, self.head = (
            nn.Embedding(WORDS, WIDTH),
            nn.Dropout(0.2),
            nn.Linear(WIDTH, WORDS),
        )
        self.memory = nn.LSTM(WIDTH, WIDTH, 2, batch_first=True, dropout=0.3)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.drop(self.memory(self.drop(self.token(ids)))[0]))


class Siamese(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.drop, self.judge = GPT(), nn.Dropout(0.4), nn.Linear(2 * WORDS, 2)

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        both = [self.encoder(ids).mean(1) for ids in (one, other)]
        return self.judge(self.drop(torch.cat(both, -1)))


class Wrapper(nn.Module):
    """What a trainer wraps a model in, whose batch is one object."""

    def __init__(self) -> None:
        super().__init__()
        self.model = GPT().eval()

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return self.model(batch["ids"])


class InOne(nn.Module):
    """All of a model in one forward, without a block of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.attend, self.head = nn.Embedding(WORDS, WIDTH), Attention(), nn.Linear(WIDTH, WORDS)
        self.up, self.down, self.p = nn.Linear(WIDTH, 16), nn.Linear(16, WIDTH), 0.2

    def forward(self, ids: Tensor) -> Tensor:
        x = F.dropout(self.token(ids), self.p, self.training)
        x = x + F.dropout(self.attend(x), self.p, self.training)
        x = x + F.dropout(self.down(self.up(x).relu()), self.p, self.training)
        return self.head(x)


class Around(nn.Module):
    """A model as the only part of another."""

    def __init__(self) -> None:
        super().__init__()
        self.core = InOne()

    def forward(self, ids: Tensor) -> Tensor:
        return self.core(ids)


class Convolving(nn.Module):
    """Residual convolutions and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, WIDTH, 4, 4), nn.Linear(WIDTH, 5)
        self.blocks = nn.ModuleList(nn.Conv2d(WIDTH, WIDTH, 3, padding=1) for _ in range(2))
        self.drop = nn.Dropout2d(0.2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + self.drop(block(x).relu())
        return self.head(x.mean((2, 3)))


class Running(nn.Module):
    """Attention without a softmax, as running sums of products."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(x).chunk(3, -1)
        query, key = F.elu(query) + 1, F.elu(key) + 1
        known = torch.einsum("btd,bte->btde", key, value).cumsum(1)
        mixed = torch.einsum("btd,btde->bte", query, known)
        return self.out(mixed / (query * key.cumsum(1)).sum(-1, keepdim=True))


class BlockOfSums(Block):
    attention = Running


class Answering(Attention):
    """Attention that adds its queries to what it mixes, before the projection of both."""

    def forward(self, x: Tensor) -> Tensor:
        parts = self.qkv(x).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
        query, key, value = (F.layer_norm(part, part.shape[-1:]) for part in parts)
        weights = (query @ key.transpose(-2, -1)).softmax(-1)
        return self.out((weights @ value + query).transpose(1, 2).flatten(2))


class BlockOfAnswers(Block):
    attention = Answering


class Masked(nn.Module):
    """Torch's encoder with a mask, which in evaluation takes another way around its modules."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(32, 4, 64, 0.2, batch_first=True, norm_first=True)
        self.token, self.head = nn.Embedding(WORDS, 32), nn.Linear(32, WORDS)
        self.trunk = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, ids: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(ids.shape[1])
        return self.head(self.trunk(self.token(ids), mask=mask, is_causal=True))


class Bare(nn.Module):
    """Weights alone, and one rate for all that drops."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.p = nn.Parameter(torch.randn(WORDS, WIDTH)), 0.2
        self.qkv, self.out = (nn.Parameter(torch.randn(n * WIDTH, WIDTH)) for n in (3, 1))

    def forward(self, ids: Tensor) -> Tensor:
        x = F.dropout(self.token[ids], self.p, self.training)
        query, key, value = F.linear(x, self.qkv).chunk(3, -1)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return F.linear(x + F.dropout(F.linear(mixed, self.out), self.p, self.training), self.token)


class Twice(Convolving):
    """The mean of two heads, which drop what was dropped before them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.other = nn.Dropout(0.2), nn.Dropout(0.3), nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + self.drop(block(x).relu())
        x = self.second(self.first(x.mean((2, 3))))
        return (self.head(x) + self.other(x)) / 2


MODELS = {
    "dropout last": (GPT, IDS),
    "one dropout": (lambda: GPT(shared=True), IDS),
    "einsum": (lambda: GPT(BlockOfEinsums), IDS),
    "parallel": (lambda: GPT(Parallel), IDS),
    "mixer": (Mixer, torch.randn(2, 3, 16, 16)),
    "recurrent": (Recurrent, IDS),
    "siamese": (Siamese, (IDS, IDS.flip(1))),
    "wrapper": (Wrapper, {"batch": {"ids": IDS}}),
    "in one": (InOne, IDS),
    "around one": (Around, IDS),
    "running sums": (lambda: GPT(BlockOfSums), IDS),
    "answering": (lambda: GPT(BlockOfAnswers), IDS),
    "masked": (Masked, IDS),
    "convolving": (Convolving, torch.randn(2, 3, 16, 16)),
    "twice": (Twice, torch.randn(4, 3, 16, 16)),
}


def run(model: nn.Module, inputs: object) -> Tensor:
    if isinstance(inputs, dict):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


@pytest.mark.parametrize("name", MODELS)
def test_at_rate_0_it_is_still_and_each_place_proves_itself(name):
    make, inputs = MODELS[name]
    model = make().train()
    assert [check.problem for check in td.check_sites(model, inputs) if check.problem] == []
    kinds = {site.kind for site in td.find_sites(model, inputs)}
    handle = td.set_rates(model, dict.fromkeys(kinds, 0.0), inputs=inputs)
    model.train()
    assert torch.equal(run(model, inputs), run(model, inputs))
    handle.remove()
    assert not torch.equal(run(model, inputs), run(model, inputs))


@pytest.mark.parametrize("name", MODELS)
def test_with_a_layer_everywhere_no_rate_of_its_own_is_left(name):
    make, inputs = MODELS[name]
    model = make()
    kinds = {site.kind for site in td.find_sites(model, inputs)} - {"block"}
    td.set_rates(model, dict.fromkeys(kinds, 0.37), inputs=inputs)
    rates = {event.rate for event in td.audit(model.train(), inputs).events}
    assert rates == {0.37}


@pytest.mark.parametrize("name", ["mixer", "convolving"])
def test_the_tokens_of_an_image_are_in_no_order(name):
    make, image = MODELS[name]
    assert not any(site.causal for site in td.find_sites(make(), image))


def test_a_model_in_another_has_the_same_places():
    alone, around = (
        [(site.path.removeprefix("core."), site.kind) for site in td.find_sites(make(), IDS)]
        for make in (InOne, Around)
    )
    assert alone == around
    assert ("head", "classifier") in alone


def test_what_drops_between_recurrent_layers_is_not_the_outputs():
    assert [(s.path, s.kind, s.rate) for s in td.find_sites(Recurrent(), IDS)] == [
        ("memory", "input", "drop.p"),
        ("memory", "mlp_hidden", "memory.dropout"),
        ("head", "classifier", "drop.p"),
    ]


@pytest.mark.parametrize("block", [BlockOfSums, BlockOfAnswers])
def test_attention_in_an_unusual_way_is_attention(block):
    sites = td.find_sites(GPT(block), IDS)
    assert [site.kind for site in sites if ".attend" in site.path] == ["attention_output"] * 2


def test_where_no_layer_can_act_a_place_is_refused_and_nothing_changes():
    model = Bare()
    with pytest.raises(td.InputError, match="still depends on the tokens"):
        td.set_rates(model, {"embedding": 0.1}, inputs=IDS)
    assert model.p == 0.2
    assert [(site.kind, site.access) for site in td.find_sites(model, IDS)] == [
        ("embedding", "rate"),
        ("other", "none"),
    ]

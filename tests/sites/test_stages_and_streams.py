"""Blocks in stages, stacks side by side, several streams: each place proves itself and none is missed."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import transformer_dropout as td
from transformer_dropout.surgery._outputs import other_tokens

WIDTH, WORDS = 8, 30
IDS = torch.arange(24).view(2, 12) % WORDS
IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Attention(nn.Module):
    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.attn_drop, self.proj_drop = nn.Dropout(0.2), nn.Dropout(0.2)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(x).chunk(3, -1)
        weights = self.attn_drop((query @ key.transpose(-2, -1)).softmax(-1))
        return self.proj_drop(self.proj(weights @ value))


class Mlp(nn.Module):
    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.drop1, self.drop2 = nn.Dropout(0.2), nn.Dropout(0.2)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop2(self.fc2(self.drop1(F.gelu(self.fc1(x)))))


class Skip(nn.Module):
    """Leaves out its branch for whole samples."""

    def __init__(self, branch: nn.Module, drop: float = 0.2) -> None:
        super().__init__()
        self.branch, self.drop = branch, drop

    def forward(self, x: Tensor) -> Tensor:
        y = self.branch(x)
        if self.training and self.drop:
            kept = torch.rand(x.shape[0], *[1] * (x.ndim - 1)).ge_(self.drop)
            y = y * kept.div(1 - self.drop)
        return x + y


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2, self.attn, self.mlp = (
            nn.LayerNorm(WIDTH),
            nn.LayerNorm(WIDTH),
            Attention(),
            Mlp(),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Shift(nn.Module):
    """Mixes tokens without attention, and has an MLP with dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.mlp = nn.LayerNorm(WIDTH), Mlp()
        self.mix = nn.Conv1d(WIDTH, WIDTH, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mix(x.transpose(1, 2)).transpose(1, 2)
        return x + self.mlp(self.norm(x))


class Stage(nn.Module):
    def __init__(self, *blocks: nn.Module, between: bool = False) -> None:
        super().__init__()
        self.down = (
            nn.Sequential(Skip(Mlp()), nn.Linear(WIDTH, WIDTH), Skip(Mlp())) if between else nn.Identity()
        )
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.down(x))


class Staged(nn.Module):
    """Early stages do not attend; between the later ones lie residual parts that are no blocks of theirs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.drop, self.head = nn.Conv2d(3, WIDTH, 2, 2), nn.Dropout(0.2), nn.Linear(WIDTH, 5)
        self.stages = nn.ModuleList(
            [Stage(Shift(), Shift()), Stage(Block(), between=True), Stage(Block(), Block(), between=True)]
        )

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images).flatten(2).transpose(1, 2)
        for stage in self.stages:
            x = stage(x)
        return self.head(self.drop(x.mean(1)))


class Pyramid(nn.Module):
    """Positions are dropped anew before every stage."""

    def __init__(self) -> None:
        super().__init__()
        self.embeds = nn.ModuleList([nn.Conv2d(3, WIDTH, 2, 2), nn.Linear(WIDTH, WIDTH)])
        self.drops = nn.ModuleList([nn.Dropout(0.2), nn.Dropout(0.2)])
        self.stages, self.head = nn.ModuleList([Stage(Block()), Stage(Block())]), nn.Linear(WIDTH, 5)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stages[0](self.drops[0](self.embeds[0](images).flatten(2).transpose(1, 2)))
        x = self.stages[1](self.drops[1](self.embeds[1](x)))
        return self.head(x.mean(1))


class Twofold(nn.Module):
    """A block of a narrow and a wide stream; of the last one the narrow stream is used no more."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.inner_mlp, self.outer, self.outer_mlp = Attention(), Mlp(), Attention(16), Mlp(16)
        self.up = nn.Linear(WIDTH, 16)

    def forward(self, pixels: Tensor, patches: Tensor) -> tuple[Tensor, Tensor]:
        pixels = pixels + self.inner(pixels)
        pixels = pixels + self.inner_mlp(pixels)
        first, rest = patches[:, :1], patches[:, 1:]
        patches = torch.cat([first, rest + self.up(pixels)], 1)
        patches = patches + self.outer(patches)
        return pixels, patches + self.outer_mlp(patches)


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pixel, self.patch, self.head = nn.Conv2d(3, WIDTH, 2, 2), nn.Linear(WIDTH, 16), nn.Linear(16, 5)
        self.token = nn.Parameter(torch.randn(1, 1, 16))
        self.blocks = nn.ModuleList([Twofold(), Twofold()])

    def forward(self, images: Tensor) -> Tensor:
        pixels = self.pixel(images).flatten(2).transpose(1, 2)
        patches = torch.cat([self.token.expand(images.shape[0], -1, -1), self.patch(pixels)], 1)
        for block in self.blocks:
            pixels, patches = block(pixels, patches)
        return self.head(patches[:, 0])


class Scales(nn.Module):
    """Takes three scales, leaves the first as it is, and shares one MLP between the others."""

    def __init__(self) -> None:
        super().__init__()
        self.attn2, self.attn3, self.mlp = Attention(), Attention(), Mlp()

    def forward(self, x1: Tensor, x2: Tensor, x3: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y2, y3 = self.attn2(x2), self.attn3(x3)
        x2, x3 = x2 + (y2 + y3), x3 + (y3 + y2)
        return x1, x2 + self.mlp(x2), x3 + self.mlp(x3)


class Coscale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, WIDTH, 2, 2), nn.Linear(WIDTH, 5)
        self.maps = nn.ModuleList([nn.Linear(WIDTH, WIDTH) for _ in range(2)])
        self.blocks = nn.ModuleList([Scales(), Scales()])

    def forward(self, images: Tensor) -> Tensor:
        x1 = self.stem(images).flatten(2).transpose(1, 2)
        x2, x3 = self.maps[0](x1), self.maps[1](x1)
        for block in self.blocks:
            x1, x2, x3 = block(x1, x2, x3)
        return self.head((x2 + x3).mean(1))


class WithGlobals(nn.Module):
    """Tokens and learned latents go through the same products; all that drops is a function of one number."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.fc1, self.fc2 = nn.Linear(WIDTH, 16), nn.Linear(16, WIDTH)
        self.dropout, self.activation_dropout = 0.2, 0.3

    def attend(self, x: Tensor, y: Tensor) -> Tensor:
        query, (_, key, value) = self.qkv(x).chunk(3, -1)[0], self.qkv(torch.cat([x, y], 1)).chunk(3, -1)
        return self.out((query @ key.transpose(-2, -1)).softmax(-1) @ value)

    def feed(self, x: Tensor) -> Tensor:
        hidden = F.dropout(self.fc1(self.norm2(x)).relu(), self.activation_dropout, self.training)
        return x + F.dropout(self.fc2(hidden), self.dropout, self.training)

    def forward(self, x: Tensor, latents: Tensor) -> tuple[Tensor, Tensor]:
        one, other = self.norm1(x), self.norm1(latents)
        x = x + F.dropout(self.attend(one, other), self.dropout, self.training)
        latents = latents + F.dropout(self.attend(other, one), self.dropout, self.training)
        return self.feed(x), self.feed(latents)


class Globals(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.token, self.latent = nn.Embedding(WORDS, WIDTH), nn.Embedding(3, WIDTH)
        self.layers, self.head = nn.ModuleList([WithGlobals(), WithGlobals()]), nn.Linear(WIDTH, WORDS)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.token(ids)
        latents = self.latent(torch.arange(3)[None].expand(ids.shape[0], -1))
        for layer in self.layers:
            x, latents = layer(x, latents)
        return self.head(x)


class ClassAttention(nn.Module):
    """Adds what attention gives to the first token alone, and returns that."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.attn, self.drop_path = nn.LayerNorm(WIDTH), Attention(), 0.2

    def forward(self, x: Tensor) -> Tensor:
        y = self.attn(self.norm(x))[:, :1]
        if self.training and self.drop_path:
            y = y * torch.rand(x.shape[0], 1, 1).ge_(self.drop_path).div(1 - self.drop_path)
        return x[:, 0:1] + y


class Meeting(nn.Module):
    """Two stacks side by side, given as a list, whose class tokens meet."""

    def __init__(self) -> None:
        super().__init__()
        self.stacks = nn.ModuleList([nn.Sequential(Block(), Block()) for _ in range(2)])
        self.fusion = nn.ModuleList([ClassAttention(), ClassAttention()])

    def forward(self, both: list[Tensor]) -> list[Tensor]:
        both = [stack(x) for stack, x in zip(self.stacks, both, strict=True)]
        pairs = zip(self.fusion, both, both[::-1], strict=True)
        return [torch.cat([fuse(torch.cat([x[:, :1], y[:, 1:]], 1)), x[:, 1:]], 1) for fuse, x, y in pairs]


class Crossing(nn.Module):
    """Two streams with patches of their own, which meet twice."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.ModuleList([nn.Conv2d(3, WIDTH, 2, 2), nn.Conv2d(3, WIDTH, 4, 4)])
        self.levels = nn.ModuleList([Meeting(), Meeting()])
        self.heads, self.drop = nn.ModuleList([nn.Linear(WIDTH, 5) for _ in range(2)]), nn.Dropout(0.2)

    def forward(self, images: Tensor) -> Tensor:
        both = [p(images).flatten(2).transpose(1, 2) for p in self.patches]
        for level in self.levels:
            both = level(both)
        logits = [head(self.drop(x[:, 0])) for head, x in zip(self.heads, both, strict=True)]
        return torch.stack(logits).mean(0)


class Across(nn.Module):
    """Attends to the tokens of another stack."""

    def __init__(self) -> None:
        super().__init__()
        self.own, self.across, self.mlp = Attention(), Attention(), Mlp()

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        x = x + self.own(x)
        x = x + self.across(torch.cat([x, memory], 1))[:, : x.shape[1]]
        return x + self.mlp(x)


class Translating(nn.Module):
    """What the encoder gives is dropped before the decoder sees it; one dropout serves both embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.head = nn.Embedding(WORDS, WIDTH), nn.Linear(WIDTH, WORDS)
        self.encoder, self.decoder = nn.ModuleList([Block(), Block()]), nn.ModuleList([Across(), Across()])
        self.norm, self.drop, self.memory_drop = nn.LayerNorm(WIDTH), nn.Dropout(0.2), nn.Dropout(0.2)

    def forward(self, ids: Tensor) -> Tensor:
        memory, x = self.drop(self.token(ids)), self.drop(self.token(ids.flip(1)))
        for block in self.encoder:
            memory = block(memory)
        memory = self.memory_drop(self.norm(memory))
        for block in self.decoder:
            x = block(x, memory)
        return self.head(x)


class Picking(nn.Module):
    """Draws which tokens it looks at, before a dropout in the same module."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.drop, self.head = nn.Embedding(WORDS, WIDTH), nn.Dropout(0.2), nn.Linear(WIDTH, 5)
        self.blocks = nn.Sequential(Block(), Block())

    def forward(self, ids: Tensor) -> Tensor:
        chosen = torch.arange(ids.shape[1])
        if self.training:
            chosen = chosen[torch.multinomial(torch.ones(ids.shape[1]), ids.shape[1])[:8]]
        return self.head(self.blocks(self.drop(self.token(ids)[:, chosen])).mean(1))


MODELS = {
    "staged": (Staged, IMAGES),
    "pyramid": (Pyramid, IMAGES),
    "nested": (Nested, IMAGES),
    "coscale": (Coscale, IMAGES),
    "globals": (Globals, IDS),
    "crossing": (Crossing, IMAGES),
    "translating": (Translating, IDS),
}


def paths(model: nn.Module, inputs: Tensor, kind: str) -> list[str]:
    return [site.path for site in td.find_sites(model, (inputs,)) if site.kind == kind]


@pytest.mark.parametrize("name", MODELS)
def test_each_place_proves_itself_and_at_rate_0_two_forwards_are_equal(name):
    make, inputs = MODELS[name]
    torch.manual_seed(0)
    model = make().train()
    assert [check.problem for check in td.check_sites(model, (inputs,)) if check.problem] == []
    kinds = {site.kind for site in td.find_sites(model, (inputs,))}
    handle = td.set_rates(model, dict.fromkeys(kinds, 0.0), inputs=(inputs,))
    assert torch.equal(model.train()(inputs), model(inputs))
    handle.remove()
    assert not torch.equal(model(inputs), model(inputs))


@pytest.mark.parametrize("name", MODELS)
def test_with_a_layer_everywhere_no_rate_of_its_own_is_left(name):
    make, inputs = MODELS[name]
    model = make()
    kinds = {site.kind for site in td.find_sites(model, (inputs,))}
    td.set_rates(model, dict.fromkeys(kinds, 0.37), inputs=(inputs,))
    assert {event.rate for event in td.audit(model.train(), (inputs,)).events} == {0.37}


def test_stages_that_do_not_attend_are_blocks_too():
    between = [f"stages.{stage}.{part}" for stage in "12" for part in ("down.0", "down.2", "blocks.0")]
    first, last = ["stages.0.blocks.0", "stages.0.blocks.1"], ["stages.2.blocks.1"]
    assert paths(Staged(), IMAGES, "block") == first + between + last
    assert paths(Staged(), IMAGES, "embedding") == first[:1]
    assert paths(Staged(), IMAGES, "classifier") == ["drop"]


def test_what_is_dropped_before_a_later_stage_is_an_embedding():
    assert paths(Pyramid(), IMAGES, "embedding") == ["drops.0", "drops.1"]
    assert paths(Pyramid(), IMAGES, "classifier") == ["head"]


def test_a_block_acts_on_all_its_streams_and_on_none_that_it_leaves_alone():
    streams = {"nested": (0, 1), "coscale": (1, 2), "globals": (0, 1)}
    for name, expected in streams.items():
        make, inputs = MODELS[name]
        sites = [site for site in td.find_sites(make(), (inputs,)) if site.kind == "block"]
        assert {site.streams for site in sites} == {expected}


def test_streams_of_several_widths_take_no_layer_that_needs_one():
    blocks = [site for site in td.find_sites(Nested(), (IMAGES,)) if site.kind == "block"]
    assert {site.width for site in blocks} == {None}


def test_a_module_that_runs_at_several_places_of_one_kind_is_the_place_of_all():
    assert paths(Coscale(), IMAGES, "mlp_output") == ["blocks.0.mlp.drop2", "blocks.1.mlp.drop2"]
    assert paths(Globals(), IDS, "mlp_hidden") == ["layers.0.fc2", "layers.1.fc2"]


def test_stacks_side_by_side_have_an_embedding_each():
    assert paths(Crossing(), IMAGES, "embedding") == ["levels.0.stacks.0.0", "levels.0.stacks.1.0"]
    assert paths(Crossing(), IMAGES, "attention_output")[:6] == [
        *(f"levels.0.stacks.{stack}.{block}.attn.proj_drop" for stack in "01" for block in "01"),
        *("levels.0.fusion.0.attn.proj_drop", "levels.0.fusion.1.attn.proj_drop"),
    ]


def test_what_one_stack_gives_another_is_no_classifier():
    assert paths(Translating(), IDS, "classifier") == ["head"]
    assert "memory_drop" in paths(Translating(), IDS, "embedding")


def test_a_dropout_that_runs_before_several_heads_is_one_place():
    assert paths(Crossing(), IMAGES, "classifier") == ["drop"]


def test_the_rate_of_a_dropout_is_not_that_of_what_was_drawn_before_it():
    sites = {site.kind: site for site in td.find_sites(Picking(), (IDS,)) if site.block is None}
    assert (sites["embedding"].path, sites["embedding"].access) == ("drop", "module")
    assert (sites["other"].access, sites["other"].rate) == ("none", None)


def test_other_tokens_have_their_largest_where_it_was():
    ids = torch.tensor([[5, 9, 6, 7], [8, 4, 10, 5]])
    other = other_tokens(ids)
    assert not torch.equal(other, ids)
    assert torch.equal(other.argmax(-1), ids.argmax(-1))

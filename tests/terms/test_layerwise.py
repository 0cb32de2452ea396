"""Learning rates by depth, and where a model's blocks are."""

import pytest
from torch import nn

from transformer_dropout.errors import InputError
from transformer_dropout.terms.layerwise import (
    alike,
    find_blocks,
    inside,
    layerwise_lr_groups,
    parameter_depths,
)
from transformer_dropout.terms.weights import trainable_parameters


class Model(nn.Module):
    """Embeddings, something before the blocks, blocks, a late embedding and a head."""

    def __init__(self, blocks=3):
        super().__init__()
        self.embedding, self.before = nn.Embedding(5, 4), nn.Linear(4, 4, bias=False)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)) for _ in range(blocks))
        self.late_embedding, self.norm, self.head = nn.Embedding(5, 4), nn.LayerNorm(4), nn.Linear(4, 5)


def depths(model, path="blocks", n_blocks=3, head=()):
    found = parameter_depths(trainable_parameters(model), path, n_blocks, head)
    return {name: found[parameter] for name, parameter in model.named_parameters()}


def test_a_depth_is_that_of_embeddings_block_or_head():
    found = depths(Model())
    assert (found["embedding.weight"], found["before.weight"], found["late_embedding.weight"]) == (0, 0, 0)
    assert [found[f"blocks.{n}.0.bias"] for n in range(3)] == [1, 2, 3]
    assert (found["norm.weight"], found["head.weight"]) == (4, 4)
    named = depths(Model(), head=["blocks.2.*", "before*"])
    assert (named["blocks.2.0.bias"], named["blocks.1.0.bias"], named["before.weight"]) == (4, 2, 4)


def test_a_tied_weight_lies_where_it_is_used_first():
    model = Model()
    model.head.weight = model.embedding.weight
    assert depths(model)["embedding.weight"] == 0


def test_rates_fall_from_the_head_to_the_embeddings():
    groups = layerwise_lr_groups(Model(), 0.1, 0.5, weight_decay=0.3)
    found = [(g["part"], g["lr"], g["lr_scale"], g["weight_decay"], len(g["params"])) for g in groups]
    parts = ["embeddings", "blocks.0", "blocks.1", "blocks.2", "head"]
    wanted = []
    for depth, part in enumerate(parts):
        scale = 0.5 ** (4 - depth)
        decayed, others = {"embeddings": (3, 0), "head": (1, 3)}.get(part, (1, 3))
        wanted.append((part, pytest.approx(0.1 * scale), scale, 0.3, decayed))
        if others:
            wanted.append((part, pytest.approx(0.1 * scale), scale, 0.0, others))
    assert found == wanted
    seen = [parameter for group in groups for parameter in group["params"]]
    assert len(seen) == len(set(seen)) == len(list(Model().parameters()))


def test_embeddings_may_be_left_undecayed_and_a_group_may_scale_its_own():
    model = Model()
    model.head.optimizer_options = {"lr_scale": 3.0}
    groups = layerwise_lr_groups(model, 0.1, 0.5, weight_decay=0.3, decay_embeddings=False)
    first = [(g["weight_decay"], len(g["params"])) for g in groups if g["part"] == "embeddings"]
    assert first == [(0.3, 1), (0.0, 2)]
    own = groups[-1]
    assert (own["part"], own["lr_scale"], own["lr"]) == ("head", 3.0, pytest.approx(0.3))


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ({"decay": 0}, "above 0 and at most 1"),
        ({"decay": 1.1}, "above 0 and at most 1"),
        ({"lr": -1e-9}, "lr is -1e-09"),
        ({"weight_decay": -1}, "weight_decay is -1"),
        ({"blocks": "blokcs"}, r"no list of blocks\..*'blocks'"),
        ({"head": "heads.*"}, "matches no parameter"),
    ],
)
def test_what_does_not_fit_is_refused(words, sentence):
    assert layerwise_lr_groups(Model(), 0.0, 1.0)[0]["lr"] == 0.0
    with pytest.raises(InputError, match=sentence):
        layerwise_lr_groups(Model(), **{"lr": 0.1, "decay": 0.5} | words)


def branch():
    return nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2)))


def test_blocks_are_the_longest_list_or_row_of_modules_that_are_alike():
    assert find_blocks(Model(), None) == ("blocks", 3)
    assert find_blocks(Model(), "blocks.0") == ("blocks.0", 2)
    row = nn.Sequential(branch(), branch(), branch())
    assert find_blocks(
        nn.ModuleDict({"a": row, "b": nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))}), None
    ) == (
        "a",
        3,
    )
    assert find_blocks(row, None) == ("", 3)
    # Experts inside a block are no blocks, and a list without parameters is none.
    experts = nn.ModuleList(nn.ModuleList(nn.Linear(2, 2) for _ in range(5)) for _ in range(2))
    empty = nn.ModuleList(nn.ReLU() for _ in range(9))
    assert find_blocks(nn.ModuleDict({"a": experts, "b": empty}), None) == ("a", 2)
    with pytest.raises(InputError, match=r"the lists a, b are equally long"):
        find_blocks(nn.ModuleDict({"a": Model().blocks, "b": Model().blocks}), None)
    with pytest.raises(InputError, match=r"there is no nn\.ModuleList"):
        find_blocks(nn.Linear(2, 2), None)


def test_modules_are_alike_that_have_one_class_and_parts():
    assert alike(nn.Sequential(branch(), branch()))
    assert not alike(nn.Sequential(branch()))
    assert not alike(nn.Sequential(branch(), nn.ModuleList([nn.Linear(2, 2)])))
    assert not alike(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)))
    assert not alike(nn.Sequential(branch(), nn.Sequential()))


def test_a_name_lies_under_a_path_or_beside_it():
    assert inside("a.b", "a") and inside("a.b.c", "a.b") and inside("a", "")
    assert not inside("a", "a") and not inside("ab.c", "a") and not inside("b.a", "a")

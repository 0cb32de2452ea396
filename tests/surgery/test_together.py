"""Places that prove themselves in one go: as many forwards whatever the depth, and nothing wrongly proven."""

from typing import ClassVar

import torch
from torch import Tensor, nn

import transformer_dropout as td
from transformer_dropout.surgery.check import checks_of


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.up(x).relu())


class Counted(nn.Sequential):
    """A stack that counts its forwards."""

    runs: ClassVar[list[int]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.runs.append(len(self))
        return super().forward(x)


def places(blocks: int) -> list[td.Site]:
    facts = {"kind": "mlp_output", "access": "output", "width": 8, "n_blocks": blocks}
    return [td.Site(path=f"{block}.down", block=block, **facts) for block in range(blocks)]


def test_a_deeper_model_takes_as_many_forwards():
    runs = []
    for blocks in (2, 8):
        Counted.runs.clear()
        model = Counted(*(Block() for _ in range(blocks)))
        checks = td.check_sites(model, torch.randn(3, 8), sites=places(blocks))
        assert [check.problem for check in checks] == [None] * blocks
        runs.append(len(Counted.runs))
    assert runs[0] == runs[1]


def test_a_place_without_a_meaning_is_found_among_others_that_have_one():
    model, sites = nn.Sequential(*(Block() for _ in range(3))), places(3)
    model[1].other = nn.Linear(8, 8)
    sites[1] = td.Site(path="1.other", kind="mlp_output", access="output", width=8, block=1)
    sites[2] = td.Site(path="2.down", kind="mlp_output", access="output", width=5, block=2)
    problems = [check.problem for check in checks_of(model, torch.randn(3, 8), sites, sites)]
    assert problems[0] is None
    assert problems[1] == "1.other (mlp_output) did not run with these inputs."
    assert "is said to be 5 wide" in problems[2]


class Deaf(nn.Module):
    """It hands the layer's result to nobody."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        self.down(x)
        return x * 2


def test_a_place_whose_result_goes_nowhere_is_not_proven():
    site = td.Site(path="1.down", kind="mlp_output", access="output", width=8)
    model = nn.Sequential(Block(), Deaf())
    problem = td.check_sites(model, torch.randn(3, 8), sites=[site])[0].problem
    assert problem == "Dropping everything at 1.down (mlp_output) changes nothing in training."


def test_a_notebook_shows_the_checks_as_a_table():
    checks = td.check_sites(nn.Sequential(Block(), Block()), torch.randn(3, 8), sites=places(2))
    table = checks._repr_html_()
    assert "2 places" in table and "0.down" in table and "right" in table

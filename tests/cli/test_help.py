"""The help pages."""

import pytest

from transformer_dropout import cli

NAMES = sorted(command.name for command in cli.app.registered_commands)


@pytest.mark.parametrize("name", NAMES)
def test_every_command_shows_examples_that_begin_with_it(here, name):
    result = here(name, "--help")
    assert result.code == 0
    assert "Example" in result.out
    assert f"dropout {name}" in result.out


def test_the_help_of_the_whole_lists_every_command(command):
    result = command("--help")
    assert (result.code, result.err) == (0, "")
    assert {"audit", "sites", "compare", "train", "generate", "report"} <= set(NAMES)
    for name in NAMES:
        assert f" {name} " in result.out


def test_the_command_without_arguments_helps(here):
    assert "Usage" in "".join((here().out, here().err))

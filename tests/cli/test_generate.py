"""``dropout generate``: one prompt or several, with and without a cache."""

import pytest

from transformer_dropout.cli.generate import show
from transformer_dropout.runs.run import run


@pytest.fixture
def generated(here, tmp_path, tiny, learned):
    """Return the text that a small trained run gives for some options."""
    run(tiny(recipe=learned), tmp_path / "out")

    def generated(*options):
        result = here("generate", "out", *options)
        assert (result.code, result.err) == (0, "")
        return result.out

    return generated


def test_the_cache_changes_no_text_within_the_window_and_beyond(generated):
    for settings in (["--temperature", "0"], ["--seed", "1"], ["--top-k", "5"], ["--top-p", "0.8"]):
        options = ["--prompt", "The cat", "--tokens", "25", *settings]
        assert generated(*options) == generated(*options, "--no-cache")


def test_several_prompts_are_continued_as_each_alone(generated):
    options = ["--temperature", "0", "--tokens", "15"]
    prompts = ["The cat", "A", "The owl of"]
    alone = [generated("--prompt", prompt, *options).removesuffix("\n") for prompt in prompts]
    together = generated(*(word for prompt in prompts for word in ("--prompt", prompt)), *options)
    assert together == "\n\n".join(alone) + "\n"
    assert [text[: len(prompt)] for text, prompt in zip(alone, prompts, strict=True)] == prompts


def test_settings_narrow_what_is_drawn(generated):
    options = ["--prompt", "The cat", "--tokens", "15"]
    greedy = generated(*options, "--temperature", "0")
    assert generated(*options, "--top-k", "1") == greedy
    assert generated(*options, "--top-p", "0.001") == greedy
    assert generated(*options, "--temperature", "1.5") != greedy
    assert generated("--prompt", "The cat", "--tokens", "0") == "The cat\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--top-k", "0"], "error: top_k is 0, but at least 1 token must be left"),
        (["--top-p", "2"], "error: top_p is 2.0, but it is above 0 and at most 1"),
        (["--prompt", ""], "error: The prompt is empty"),
    ],
)
def test_a_setting_out_of_range_is_one_sentence(here, tmp_path, tiny, options, message):
    run(tiny(steps=1), tmp_path / "out")
    result = here("generate", "out", *options)
    assert (result.code, result.out, len(result.err.splitlines())) == (2, "", 1)
    assert result.err.startswith(message)


@pytest.mark.parametrize("text", ["aé", "é", "aéb", "a漢é😀", "a😀b漢"])
@pytest.mark.parametrize("prompt", [0, 1, 2])
def test_a_character_of_several_tokens_is_written_when_it_is_whole(capsys, text, prompt):
    ids = list(text.encode())
    written = []

    def steps():
        for number in ids[prompt:]:
            yield [number]
            written.append(capsys.readouterr().out)

    show([ids[:prompt]], steps(), lambda row: bytes(row).decode(errors="replace"))
    written.append(capsys.readouterr().out)
    assert "".join(written) == f"{text}\n"
    assert not any("\ufffd" in part for part in written)


def test_half_a_character_at_the_end_is_shown_as_such(capsys):
    show([[]], [[97], [0xE6]], lambda row: bytes(row).decode(errors="replace"))
    assert capsys.readouterr().out == "a\ufffd\n"

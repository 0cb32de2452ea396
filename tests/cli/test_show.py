"""``dropout show``: from a run with its checkpoints, from a Hugging Face folder, and refusals."""

import json
import re

import pytest
import torch

import transformer_dropout as td
from transformer_dropout.audit.tiny_models import tiny_model
from transformer_dropout.runs.run import run


def content_of(page):
    text = page.read_text(encoding="utf-8")
    return json.loads(re.search(r'id="content">(.*?)</script>', text, flags=re.DOTALL)[1])


def save_tokenizer(folder):
    """Write a tokenizer of 64 words, as tiny models have."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.WordLevel({f"w{n}": n for n in range(64)}, unk_token="w0"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="w0").save_pretrained(folder)


def test_a_run_is_shown_through_its_checkpoints(here, tmp_path, tiny, learned):
    run(tiny(recipe=learned, keep_checkpoints=3, steps=20, eval_every=5), tmp_path / "out")
    result = here("show", "out", "--text", "The cat of house 12")
    assert (result.code, result.err) == (0, "")
    assert "Of the text's 19 tokens the model reads 16" in result.out
    assert str(tmp_path / "out" / "masks.html") in result.out
    content = content_of(tmp_path / "out" / "masks.html")
    assert "".join(content["tokens"]) == "The cat of house"
    assert [moment["name"] for moment in content["moments"]] == [
        "step 10",
        "step 15",
        "step 20",
        "the saved model",
    ]
    last, saved = (moment["places"] for moment in content["moments"][-2:])
    assert last == saved
    assert last != content["moments"][0]["places"]


def test_a_damaged_checkpoint_is_left_out_and_named(here, tmp_path, tiny, learned):
    run(tiny(recipe=learned), tmp_path / "out")
    (tmp_path / "out" / "checkpoints" / "step-00000010" / "model.safetensors").write_bytes(b"x")
    result = here("show", "out", "--text", "The cat", "--out", "page.html")
    assert result.code == 0
    assert (
        "The checkpoint step-00000010 is left out: model.safetensors is truncated or altered." in result.out
    )
    assert len(content_of(tmp_path / "page.html")["moments"]) == 2


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # raised inside transformers
@pytest.mark.parametrize("saved", ["apart", "inside"])
def test_a_hugging_face_folder_is_shown_with_the_recipe_beside_it(here, tmp_path, saved):
    torch.manual_seed(0)
    model, folder = tiny_model("gpt2"), tmp_path / "model"
    handle = td.regularize_(model, td.Recipe([td.Rule("mlp_output", td.LearnedDropout, heads=4, shift=2.0)]))
    for placed in handle.placed:
        torch.nn.init.normal_(placed.layer.qkv.weight)
    expected = td.show(model, {"input_ids": torch.tensor([[5, 6, 7]])}, tokens=["w5", "w6", "w7"])
    model.save_pretrained(folder)
    save_tokenizer(folder)
    td.save_regularized(folder, handle) if saved == "apart" else td.save_recipe(folder, handle.recipe)
    result = here("show", "model", "--text", "w5 w6 w7")
    assert (result.code, result.err) == (0, "")
    (tmp_path / "expected.html").write_text(expected, encoding="utf-8")
    found, wanted = content_of(folder / "masks.html"), content_of(tmp_path / "expected.html")
    assert found["tokens"] == wanted["tokens"]
    assert found["moments"][-1]["places"] == wanted["moments"][-1]["places"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # raised inside transformers
def test_what_cannot_be_shown_is_refused_in_one_sentence(here, tmp_path, tiny):
    (tmp_path / "empty").mkdir()
    tiny_model("gpt2").save_pretrained(tmp_path / "bare")
    td.save_recipe(tmp_path / "bare", td.Recipe([td.Rule("mlp_output", td.LearnedDropout, heads=4)]))
    for words, sentence in (
        (("gpt2", "--text", "a"), "gpt2 is no folder"),
        (("empty", "--text", "a"), "holds no run"),
        (("bare", "--text", ""), "The text is empty"),
        (("bare", "--text", "a"), "bare holds no tokenizer"),
    ):
        result = here("show", *words)
        assert result.code == 2
        assert sentence in result.err and "Traceback" not in result.err
    save_tokenizer(tmp_path / "bare")
    assert "not what they learned" in here("show", "bare", "--text", "w1").err

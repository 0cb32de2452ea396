import json
import shutil

import pytest

from transformer_dropout.errors import InputError
from transformer_dropout.tasks.language.data import make_tokenizer
from transformer_dropout.tasks.language.data.gpt2_files import gpt2_fingerprint, load_gpt2


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty Hugging Face cache, and no way to the network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("socket.socket.connect", lambda *args: pytest.fail("touched the network"))
    return tmp_path / "hub"


def _tokenizer_file(gpt2_folder, folder):
    folder.mkdir(parents=True, exist_ok=True)
    inner = load_gpt2(str(gpt2_folder))
    inner.enable_truncation(4)
    inner.save(str(folder / "tokenizer.json"))
    return folder


def test_the_old_pair_of_files(gpt2_folder):
    tokenizer = make_tokenizer(f"gpt2:{gpt2_folder}", [])
    assert (tokenizer.vocabulary_size, tokenizer.separator_id) == (50_257, 50_256)
    ids = tokenizer.encode(" he é<|endoftext|>")
    assert len(ids) == 6  # space, he, space, two bytes of é, the separator
    assert ids[-1] == 50_256
    assert tokenizer.decode(ids) == " he é<|endoftext|>"


def test_the_one_file_without_its_length_limit(gpt2_folder, tmp_path):
    folder = _tokenizer_file(gpt2_folder, tmp_path / "one")
    tokenizer = make_tokenizer(f"gpt2:{folder}", [])
    text = "hello there, hello\n\n  there"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert (tokenizer.encode(text) == make_tokenizer(f"gpt2:{gpt2_folder}", []).encode(text)).all()


@pytest.mark.parametrize("repository", ["openai-community--gpt2", "gpt2"])
def test_the_hub_cache_is_used(hub, gpt2_folder, repository):
    model = hub / f"models--{repository}"
    _tokenizer_file(gpt2_folder, model / "snapshots" / "0123abc")
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text("0123abc")
    assert make_tokenizer("gpt2", []).vocabulary_size == 50_257


def test_nothing_in_the_hub_cache(hub):
    with pytest.raises(InputError, match=r"data\.tokenizer=bytes or data\.tokenizer=bpe:8192.*gpt2:FOLDER"):
        load_gpt2()


def test_a_folder_without_the_files(tmp_path, gpt2_folder):
    shutil.copy(gpt2_folder / "vocab.json", tmp_path)
    with pytest.raises(InputError, match=r"neither tokenizer\.json nor vocab\.json with merges\.txt"):
        load_gpt2(str(tmp_path))


def test_a_file_that_is_no_tokenizer(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match=r"tokenizer\.json is not a tokenizer file"):
        load_gpt2(str(tmp_path))


def test_another_tokenizer_than_gpt2s(tmp_path, gpt2_vocabulary):
    small = dict(list(gpt2_vocabulary.items())[:300])
    (tmp_path / "vocab.json").write_text(json.dumps(small))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    with pytest.raises(InputError, match="has 301 entries, so it is not GPT-2's"):
        load_gpt2(str(tmp_path))


def test_fingerprint_follows_the_files(tmp_path, gpt2_folder):
    copy = shutil.copytree(gpt2_folder, tmp_path / "copy")
    assert gpt2_fingerprint(str(copy)) == gpt2_fingerprint(str(gpt2_folder))
    (copy / "merges.txt").write_text("#version: 0.2\n")
    assert gpt2_fingerprint(str(copy)) != gpt2_fingerprint(str(gpt2_folder))

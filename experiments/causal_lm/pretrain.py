"""Pre-train a small GPT-2 on the standard library's source, for `dropout compare --task causal_lm`.

    python experiments/causal_lm/pretrain.py FOLDER [STEPS]

A byte-level BPE of 2,048 tokens and 3 blocks of width 128, trained without dropout for STEPS batches of
16 x 128 tokens; the folder is what `from_pretrained` reads. Minutes on two cores.
"""

import sys
from pathlib import Path

import torch
from tokenizers import ByteLevelBPETokenizer
from tqdm import trange
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from transformer_dropout.tasks.language.data.corpora import open_corpus

CHARACTERS = 3_000_000
CONTEXT, BATCH = 128, 16
END = "<|end|>"


def trained_tokenizer(text: str) -> PreTrainedTokenizerFast:
    """Return a byte-pair tokenizer trained on a text."""
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator([text], vocab_size=2048, special_tokens=[END], show_progress=False)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer._tokenizer, eos_token=END, pad_token=END)


def main(folder: str, steps: int = 1500) -> None:
    """Train a tokenizer and a model, and write both into a folder."""
    torch.manual_seed(0)
    text = "\n".join(document.text for document in open_corpus("stdlib-code").read())[:CHARACTERS]
    tokenizer = trained_tokenizer(text)
    tokens = torch.tensor(tokenizer.backend_tokenizer.encode(text).ids)
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(tokenizer), n_positions=CONTEXT, n_embd=128, n_layer=3, n_head=4,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
            bos_token_id=tokenizer.eos_token_id, eos_token_id=tokenizer.eos_token_id,
        )
    )  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.1, fused=True)
    decay = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    for step in (bar := trange(steps)):
        starts = torch.randint(len(tokens) - CONTEXT, (BATCH,))
        batch = torch.stack([tokens[start : start + CONTEXT] for start in starts])
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        decay.step()
        optimizer.zero_grad()
        if step % 50 == 0:
            bar.set_postfix(nats_per_token=f"{loss.item():.3f}")
    print(f"{steps} steps over {len(tokens):,} tokens: the last batch had {loss.item():.3f} nats per token.")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:3]))

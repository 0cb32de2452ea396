"""Train a small GPT-2 with Hugging Face's Trainer; knows nothing of dropout beyond its config.

`finetune.py` beside it compares regularizers in it without changing a line here.
"""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel, HfArgumentParser, Trainer, TrainingArguments, set_seed


@dataclass
class DataArguments:
    train_file: str = field(metadata={"help": "A text, read byte by byte."})
    block_size: int = field(default=32, metadata={"help": "Bytes in a window."})


def main() -> None:
    parser = HfArgumentParser((DataArguments, TrainingArguments))
    data, arguments = parser.parse_args_into_dataclasses()
    set_seed(arguments.seed)
    text = torch.frombuffer(bytearray(Path(data.train_file).read_bytes()), dtype=torch.uint8).long()
    windows = [{"input_ids": w, "labels": w} for w in text.unfold(0, data.block_size, data.block_size)]
    held_out = max(1, len(windows) // 5)
    config = GPT2Config(
        vocab_size=256,
        n_positions=data.block_size,
        n_embd=32,
        n_layer=2,
        n_head=4,
        embd_pdrop=0.0,
        resid_pdrop=0.0,
        attn_pdrop=0.0,
    )
    trainer = Trainer(
        model=GPT2LMHeadModel(config),
        args=arguments,
        train_dataset=windows[:-held_out],
        eval_dataset=windows[-held_out:],
    )
    trainer.train()
    metrics = trainer.evaluate()
    trainer.log_metrics("eval", metrics)


if __name__ == "__main__":
    main()

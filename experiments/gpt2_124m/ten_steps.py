"""Train GPT-2's size for ten steps, sharded over two processes, once through and once killed and resumed.

    python experiments/gpt2_124m/ten_steps.py runs/gpt2_124m experiments/gpt2_124m

Writes ``ten_steps.json`` into the second folder: the metrics, and whether those and the weights are equal.
"""

import hashlib
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

SETTINGS = (
    "training.distributed=fsdp",
    "training.batch=2",
    "training.accumulation=1",
    "training.eval_every=5",
    "training.eval_windows=2",
    "training.probe_windows=2",
    "data.tokenizer=bpe:50257",
)
MEASURED = ("step_seconds", "peak_memory_bytes")
SHOWN = ("step", "tokens", "train_loss", "val_loss")


def command(folder: Path) -> list[str]:
    """Return the command of one run."""
    words = [sys.executable, "-m", "transformer_dropout", "train", "configs/gpt2_124m/dropout.yaml"]
    words += ["--out", str(folder), "--steps", "10", "--processes", "2", "--threads", "1"]
    for setting in SETTINGS:
        words += ["--set", setting]
    return words


def rows(folder: Path) -> list[dict]:
    """Return a run's metrics without what a clock or the system measured."""
    file = folder / "metrics.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    return [{k: v for k, v in json.loads(line).items() if k not in MEASURED} for line in lines]


def digest(folder: Path) -> str:
    """Return a digest of the trained weights."""
    return hashlib.sha256((folder / "model" / "model.safetensors").read_bytes()).hexdigest()


def killed_and_resumed(folder: Path) -> None:
    """Kill a run after the checkpoint of its fifth step, and take it up again."""
    process = subprocess.Popen(command(folder))
    while process.poll() is None and not (folder / "checkpoints" / "step-00000005").is_dir():
        time.sleep(0.2)
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(5)  # its two processes look every half second
    assert len(rows(folder)) == 2, "it ended before it could be killed"
    subprocess.run([*command(folder), "--resume"], check=True)


def main(runs: str, out: str) -> None:
    """Make both runs and write what came out."""
    whole, broken = Path(runs, "whole"), Path(runs, "resumed")
    subprocess.run(command(whole), check=True)
    killed_and_resumed(broken)
    record = json.loads((whole / "run.json").read_text(encoding="utf-8"))
    found = {
        "command": command(Path("FOLDER"))[1:],
        "parameters": record["parameters"],
        "processes": 2,
        "metrics": [{name: row[name] for name in SHOWN} for row in rows(whole)],
        "metrics_equal": rows(whole) == rows(broken),
        "weights_equal": digest(whole) == digest(broken),
    }
    Path(out, "ten_steps.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print({name: found[name] for name in ("metrics_equal", "weights_equal")})


if __name__ == "__main__":
    main(*sys.argv[1:])

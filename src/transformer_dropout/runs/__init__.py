"""One run, whatever it trains: its config, loop, evaluation, checkpoints and records."""

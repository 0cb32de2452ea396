"""What a run trains: one task a file or folder, and none knows of arms, seeds or checkpoints."""

"""What a run trains: one task per file or folder, and none knows of arms, seeds or checkpoints."""

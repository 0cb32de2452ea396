"""What is added to a loss, or does something to weights: penalties, consistency, noise, decay."""

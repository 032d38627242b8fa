"""Ways to move bytes between two processes, all measured alike."""

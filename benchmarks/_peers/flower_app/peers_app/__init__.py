"""The job for Flower."""

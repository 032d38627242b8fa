"""The Bundle's own code."""

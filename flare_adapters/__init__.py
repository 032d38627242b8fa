"""Federated rounds inside the running loop of Lightning, Hugging Face and MONAI."""

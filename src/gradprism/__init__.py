"""Routes agent trajectories to supervised fine-tuning or reinforcement learning by gradient concentration (PRISM)."""

__version__ = "0.1.0"

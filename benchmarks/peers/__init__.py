"""Public ways to the norms of per-sample weight gradients, one module each, for `probe_cost.py` to check and to time."""

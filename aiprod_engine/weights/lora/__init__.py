"""Adapters: files read against a model, stacked, fused into weights or run beside them."""

"""Tensors in, tensors out: no model, no training."""

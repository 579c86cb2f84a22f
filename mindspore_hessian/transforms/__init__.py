"""Transforms: compositions of MindSpore's gradients, compiled once."""

"""Diverse sets of samples from diffusion models."""

"""Worlds: moving digits, and the user's own data."""

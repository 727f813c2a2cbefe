"""Pairings: who is chosen and who is rejected."""

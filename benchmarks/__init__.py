"""Figures, as commands."""

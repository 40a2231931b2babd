"""Figures and findings from what runs left."""

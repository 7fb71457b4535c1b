"""Figures: numbers in, a matplotlib Figure and the rows of its CSV out. No model, no torch."""

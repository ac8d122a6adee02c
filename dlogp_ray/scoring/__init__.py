"""Packing, the scorer that runs all policies over the same text, and a float64 reference."""

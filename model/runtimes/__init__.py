"""A network written down for what computes it without torch."""

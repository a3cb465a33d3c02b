"""The machine that computes: what it has, and how quick it is."""

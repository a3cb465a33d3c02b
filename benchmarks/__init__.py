"""What is measured, and the evidence of each run as files. `make bench` makes them again."""

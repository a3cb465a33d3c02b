"""What computes a batch: the ways, and the choice between them."""

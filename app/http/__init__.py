"""HTTP on a connection: from bytes to requests, from answers to bytes."""

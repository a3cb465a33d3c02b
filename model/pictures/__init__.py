"""Picture files and their pixels, by one definition for training and service."""

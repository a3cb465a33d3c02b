"""What the batcher is made of; app/batcher.py is where it begins."""

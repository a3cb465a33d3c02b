"""What a training run is made of; model/train.py is the run itself."""

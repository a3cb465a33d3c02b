"""The service: HTTP in front, a batcher in the middle, the network behind. Imports `model/`, never the other way."""

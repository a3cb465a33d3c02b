"""Our service beside its peers: the same work behind each, measured in interleaved rounds.

`python -m benchmarks.peers` makes the environments, runs the rounds and writes the figures. The modules named for a
contender run in that contender's environment and serve it.
"""

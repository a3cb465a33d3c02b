"""The network and its life before serving: definition, data, training, evaluation, checkpoints.

Knows nothing of HTTP. `app/` imports from here, never the other way.
"""

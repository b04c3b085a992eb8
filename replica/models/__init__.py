"""The models that the engine computes: one decoder by flags, which config.json sets.

`config.py` imports no torch; the rest does.
"""

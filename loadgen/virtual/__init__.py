"""Virtual time: the real scheduler, block pool, index and policies, driven by a simulated clock.

Deterministic by seed. Must never read a real clock, open a socket or start a process.
"""

"""Pure decisions: what every replica is doing, what a request would cost there, and which one to choose.

Floor 1: imports nothing of ours, does no I/O, reads no clock but the one it is handed.
"""

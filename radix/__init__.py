"""The prefix index: which replica holds the KV blocks of which prompt prefix.

Floor 1: imports nothing of ours.
"""

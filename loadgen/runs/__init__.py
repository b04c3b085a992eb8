"""Runs: asking a plan of a server, on time, and recording what came of it.

Imports `plans` and from `loadgen` what starts processes and reads answers; what figures mean is for `reports`.
"""

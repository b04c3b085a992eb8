"""Workloads, an open-loop client, the demo and its reports.

Floor 3: may import every other room; nothing imports it.
"""

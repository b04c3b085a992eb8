"""Triton kernels of the bundled engine, and their plain torch references.

Floor 1: imports nothing of ours. Needs the `replica` extra (torch, triton); the router never imports it.
"""

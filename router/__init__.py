"""The reverse proxy: data plane, control plane, and the command line.

Floor 2: may import radix and scoring; never replica, loadgen, kernels or torch.
"""

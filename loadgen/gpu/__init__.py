"""`make gpu-bench`: the GPU's own ceilings, then kernels and engine against them.

Builds and prints without a GPU, too; then its table says what was not measured.
"""

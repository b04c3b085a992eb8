"""Models this small are computed fastest on one thread, and beside other tests."""

import torch

torch.set_num_threads(1)

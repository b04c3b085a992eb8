"""The demo: the same readers under each routing policy in turn, in front of a small simulated fleet.

What is asked comes of `plans`, the asking of `runs`, the figures of `reports`; here is what makes of them one table and
one sentence. `routers` borrows the readers and the way of measuring.
"""

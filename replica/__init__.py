"""The bundled engine: scheduler, block pool, runners, and an OpenAI-compatible server.

Floor 2: may import radix (events, blocks, chat) and kernels; never router, scoring or loadgen.
"""

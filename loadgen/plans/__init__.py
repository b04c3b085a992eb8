"""Plans of load: what is asked of a server, and when. Seeded data; nothing here knows a clock, a server or a model.

Of the rest of `loadgen` it imports the reader of traces only; `runs`, `reports` and `compare` build on it.
"""

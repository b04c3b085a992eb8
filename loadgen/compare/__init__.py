"""Comparing: the same schedule against several servers, and recorded decisions under other policies."""

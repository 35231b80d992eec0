"""Fakes and conformance suites: what an implementation of a seam must pass."""

"""Benchmarks: one script per claim, each beside the original it is compared with.

Owns measuring and nothing that is measured. Only ratios of one run count; see README.md.
"""

"""Measurements that anyone can rerun: ``python -m benchmarks.throughput``, ``.evaluation``, ``.loader``, ``.loss``."""

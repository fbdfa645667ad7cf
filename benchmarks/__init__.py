"""Measurements that anyone can rerun: ``python -m benchmarks.throughput`` and its neighbours."""

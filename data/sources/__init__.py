"""Where rows come from: shards on disk or on the Hub, copies that give single rows, and the choice among them."""

from data.sources.choice import open_rows

__all__ = ["open_rows"]

"""Checkpoints in and out: read in any dialect, found on disk or on the Hub, written, described and published."""

"""Files that are read while they are written: whole, as they were or as they become."""

from __future__ import annotations

from pathlib import Path


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replace a file at once: whoever reads it meanwhile has the whole old one or the whole new one.

    Where the disk has no room for it, the old one stays and nothing else does.
    """
    unfinished = path.with_name(f"{path.name}.unfinished")
    # A name read from somebody's config.json may hold half a surrogate pair, which no encoding can write.
    try:
        unfinished.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "replace"))
        unfinished.replace(path)
    except OSError:
        unfinished.unlink(missing_ok=True)
        raise

"""Going on with an earlier run."""

from __future__ import annotations

from pathlib import Path

from segformer.files import WEIGHTS_NAME
from segformer.training.checkpoints import check_whole, newest_checkpoint
from segformer.training.output import check_output_dir


def find_resumed(output_dir: str | None, resume_from: str | None, overwrite: bool) -> Path | None:
    """The checkpoint to go on from, or None to start at the beginning; refuses to lose what the output folder holds.

    ``resume_from`` is a checkpoint's folder, "last" for the newest in ``output_dir``, or None.
    """
    if resume_from is None:
        if output_dir is not None:
            check_output_dir(Path(output_dir), overwrite)
        return None
    if resume_from != "last":
        checkpoint = Path(resume_from).resolve()  # its parent is the run's folder, also where it is named '.'
        if output_dir is not None and Path(output_dir).resolve() != checkpoint.parent:
            check_output_dir(Path(output_dir), overwrite=False)
        check_whole(checkpoint)
        return checkpoint
    if output_dir is None:
        raise ValueError("resume_from_checkpoint is 'last' but there is no output_dir to look in")
    newest = newest_checkpoint(Path(output_dir))
    if newest is None and (Path(output_dir) / WEIGHTS_NAME).exists():
        raise ValueError(f"{output_dir} holds a model but no checkpoint to go on from; name another --output-dir")
    return newest

"""What ends a run, in one line: mistakes in settings and data, and what the machine lacks."""

from __future__ import annotations

from segformer.machine import out_of_memory
from segformer.training.ranks import is_lost_rank


def explain(error: Exception) -> str | None:
    """One line about a mistake in the settings or the data, or about what the machine lacks; None for our own."""
    if isinstance(error, ValueError | OSError | FloatingPointError | MemoryError):
        lines = str(error).strip().splitlines() or [type(error).__name__]
        from_worker = "Original Traceback" in str(error)  # then the last line is what went wrong
        return lines[-1] if from_worker else " ".join(lines)
    if said := out_of_memory(error):
        return (
            f"{said}; what was saved is whole: go on with --resume-from-checkpoint, a lower "
            "--per-device-train-batch-size and as many more --gradient-accumulation-steps, or where it was evaluating "
            "a lower --per-device-eval-batch-size"
        )
    if "no kernel image is available" in str(error):
        return "this torch has no kernels for this GPU; install a build that has (pytorch.org), or pass --device cpu"
    if isinstance(error, RuntimeError) and is_lost_rank(error):  # torchrun, which has the last word, names it
        return "another rank has ended; go on with --resume-from-checkpoint last"
    return None

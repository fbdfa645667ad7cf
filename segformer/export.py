"""``python -m segformer.export RUN OUT.onnx``: the door to segformer/weights/export.py."""

import sys

from segformer.weights.export import export, main

__all__ = ["export"]

if __name__ == "__main__":
    sys.exit(main())

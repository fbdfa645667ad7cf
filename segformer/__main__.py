"""``python -m segformer``: segment photos."""

import sys

from segformer.command import main

if __name__ == "__main__":
    sys.exit(main())

"""`python -m posttrain`: the `posttrain` command where its script is not on the PATH."""

import sys

from posttrain.cli import main

if __name__ == "__main__":
    sys.exit(main())

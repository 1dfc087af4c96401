"""A Ray cluster on this machine for as long as one command runs: `python cluster/local.py -- COMMAND …`."""

import sys

from limrank.cluster.local import main

if __name__ == "__main__":
    sys.exit(main())

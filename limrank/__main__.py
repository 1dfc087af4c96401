import sys

from limrank.cli import main

sys.exit(main())

"""`python -m calumma`: the same as the command `calumma`."""

import sys

from calumma.cli import main

sys.exit(main())

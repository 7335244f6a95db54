"""`python -m pyrocell.cli`."""

import sys

from pyrocell.cli.main import main

sys.exit(main())

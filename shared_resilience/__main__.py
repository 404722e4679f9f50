"""`python -m shared_resilience` is the command line."""

import sys

from shared_resilience.cli import main

sys.exit(main())

"""`python -m grasp` is the command `grasp`."""

import sys

from grasp.cli import main

sys.exit(main())

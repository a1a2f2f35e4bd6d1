"""`python -m grasp` is the command `grasp`."""

import sys

from grasp.commands.parser import main

sys.exit(main())

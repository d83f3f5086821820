"""``python -m moc`` is the command ``moc``."""

import sys

from moc.cli import main

sys.exit(main())

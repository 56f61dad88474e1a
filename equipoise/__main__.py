"""``python -m equipoise`` is the same as the installed command."""

import sys

from equipoise.cli import main

if __name__ == "__main__":
    sys.exit(main())

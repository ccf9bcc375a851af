import sys

from capmix.cli import main

sys.exit(main())

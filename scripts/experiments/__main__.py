import sys

from scripts.experiments import main

sys.exit(main())

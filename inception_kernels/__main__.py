import sys

from inception_kernels.cli import main

sys.exit(main())

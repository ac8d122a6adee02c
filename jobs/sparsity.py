"""Entry point of the sparsity job for ``ray job submit``.

    ray job submit --working-dir . -- python jobs/sparsity.py s3://bucket/runs/my-run --by correct

The same as ``dlogp sparsity``; ``--help`` lists the options.
"""

import sys

from dlogp_ray.__main__ import main

if __name__ == "__main__":
    sys.argv[1:] = ["sparsity", *sys.argv[1:]]
    main()

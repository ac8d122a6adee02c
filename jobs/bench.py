"""Entry point of the benchmark for ``ray job submit``: this node's speed.

    ray job submit --working-dir . -- python jobs/bench.py --base PATH --rl PATH

The same as ``dlogp bench``; ``--help`` lists the options.
"""

import sys

from dlogp_ray.__main__ import main

if __name__ == "__main__":
    sys.argv[1:] = ["bench", *sys.argv[1:]]
    main()

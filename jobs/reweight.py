"""Entry point of the reweight job for ``ray job submit``.

    ray job submit --working-dir . -- python jobs/reweight.py s3://bucket/my-run --scheme low_prob

The same as ``dlogp reweight``; ``--help`` lists the options.
"""

import sys

from dlogp_ray.__main__ import main

if __name__ == "__main__":
    sys.argv[1:] = ["reweight", *sys.argv[1:]]
    main()

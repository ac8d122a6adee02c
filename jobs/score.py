"""Entry point of the score job for ``ray job submit``.

    ray job submit --working-dir . -- python jobs/score.py --config job.yaml

The same as ``dlogp score job.yaml``; ``--help`` lists the options.
"""

import sys

from dlogp_ray.__main__ import main

if __name__ == "__main__":
    words = [word.removeprefix("--config=") for word in sys.argv[1:] if word != "--config"]
    sys.argv[1:] = ["score", *words]
    main()

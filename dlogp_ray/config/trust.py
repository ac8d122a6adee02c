"""What of a checkpoint may be run as code."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Trust:
    """Nothing, unless the user says otherwise: ``trust_remote_code`` and ``allow_pickle`` of a job.

    Attributes:
        remote_code: Python code that comes with it.
        pickle: Weights that hold no safetensors file; unpickling runs code.
    """

    remote_code: bool = False
    pickle: bool = False


NO_TRUST = Trust()

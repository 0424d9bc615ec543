"""Banks of noises and rooms are read from their corpus once in a job. The ranks take them from the object store.

A task reads each bank while the workers start. The driver holds the answer until the training ends, so that restarted
ranks need not read again. If the store is full, Ray moves the answer to disk; if its node fails, Ray runs the task
again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from rayssl import errors
from rayssl.views.banks import RecordedBank

BankRefs: TypeAlias = Mapping[RecordedBank, Any]


def start(wanted: list[RecordedBank]) -> BankRefs:
    """Starts to read the banks, and does not wait."""
    import ray  # here, since `cluster.connect` must come before

    # Few CPUs, since the ranks wait for it. Not 0: a cluster's head that offers no CPUs is to be left alone. A trial of
    # Ray Tune is in a placement group that is as large as itself: "DEFAULT" leaves the group.
    read = ray.remote(num_cpus=0.01, max_retries=3, scheduling_strategy="DEFAULT")(_read)
    return {bank: read.remote(bank) for bank in wanted}


def take(refs: BankRefs, bank: RecordedBank) -> NDArray[np.float32]:
    """Waits for the bank. The array is read-only and shared by all processes of a node: copy it, and drop it.

    A `UserError` of the reading task is raised here.
    """
    import ray

    made = ray.get(refs[bank])
    if isinstance(made, tuple):
        name, message = made
        raise getattr(errors, name)(message)
    return np.asarray(made)


def _read(bank: RecordedBank) -> NDArray[np.float32] | tuple[str, str]:
    """What the task runs. A `UserError` becomes an answer: an exception would print the traceback of every process."""
    try:
        return bank.read()
    except errors.UserError as error:
        return type(error).__name__, str(error)

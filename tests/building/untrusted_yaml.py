"""What the tests of model files share: a file around rows, the largest size of the process, an end to what hangs."""

import faulthandler
from contextlib import contextmanager

from torch import nn

from ultralytics.nn.tasks import parse_model

STEM = [-1, 1, "Conv", [16, 3, 2]]


def parse(*rows: list, **settings: object) -> nn.Module:
    d = {"nc": 2, "yaml_file": "strange.yaml", "backbone": [STEM, *rows], "head": [], **settings}
    return parse_model(d, ch=3, verbose=False)[0]


def peak() -> int:
    """Give the most bytes that the process has taken so far."""
    import resource  # which Windows lacks

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@contextmanager
def no_hang(seconds: int):
    """End the process, with where it stands, if something takes for ever."""
    faulthandler.dump_traceback_later(seconds, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()

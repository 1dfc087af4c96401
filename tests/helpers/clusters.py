"""``cluster/local.py``, which is a script, as a module."""

import importlib.util
import sys

from helpers import REPOSITORY

LOCAL = REPOSITORY / "cluster" / "local.py"


def load_local():
    spec = importlib.util.spec_from_file_location("cluster_local", LOCAL)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # a dataclass looks its module up
    spec.loader.exec_module(module)
    return module

"""Lets SGLang start on a machine without a GPU: imported whenever Python starts in its environment.

SGLang imports its GPU kernels (``sgl_kernel``) and ``torchvision`` wherever it runs; for a text model on a
CPU it calls neither. Here they are packages in which every name exists and nothing can be called. What
runs is SGLang's real process tree, scheduler, API server and PyTorch attention, without its kernels: it shows
that a snapshot of SGLang works, and says nothing about SGLang's speed.
"""

import importlib.util
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec

STUBBED = ("sgl_kernel", "torchvision")
VERSION = "0.4.10"  # of sglang-kernel, which SGLang 0.5.23 compares with the one it needs


class _AnyName(type):
    """Classes in which every name exists, for enumerations that are read while modules are imported."""

    def __getattr__(cls, name):
        return _stub(cls.__module__, name)


class _Stub(metaclass=_AnyName):
    def __init__(self, *args, **kwargs):
        raise NotImplementedError(f"{type(self).__module__}.{type(self).__name__} is a stub on this machine")


def _stub(module, name):
    if name.startswith("__"):
        raise AttributeError(name)
    return type(name, (_Stub,), {"__module__": module})


class _Stubs(MetaPathFinder, Loader):
    def find_spec(self, fullname, path=None, target=None):
        if fullname.partition(".")[0] not in STUBBED:
            return None
        # Who asks whether torchvision is installed (transformers does) hears no; who imports it gets a stub.
        callers = (sys._getframe(depth).f_code for depth in (1, 2))
        if importlib.util.find_spec.__code__ in callers:
            return None
        return ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec):
        return None

    def exec_module(self, module):
        module.__version__ = VERSION
        module.__getattr__ = lambda name: _stub(module.__name__, name)


sys.meta_path.append(_Stubs())

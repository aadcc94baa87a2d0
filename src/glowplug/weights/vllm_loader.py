"""``vllm serve --load-format glowplug``: vLLM's weights, read by :mod:`glowplug.weights`.

vLLM finds :func:`register` by an entry point of the group ``vllm.general_plugins``: that of this package
where it is installed, else that in the folder ``plugin`` beside this file, which the recipe for vLLM puts on
``PYTHONPATH``. Which files a model is made of, and what becomes of its tensors, remains vLLM's business.
Tensors arrive on the device that vLLM loads onto, in bounded memory; with expert parallelism only a rank's
own are read.

Known to work with vLLM 0.32. It imports vLLM, so nothing else may import it.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from typing import Any

import torch
from vllm.model_executor.model_loader import register_model_loader
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader
from vllm.model_executor.model_loader.ep_weight_filter import should_skip_weight

from glowplug.types.errors import InvalidInput
from glowplug.weights.reading import Reading
from glowplug.weights.tensors import iterate

LOAD_FORMAT = "glowplug"
_OPTIONS = {field.name for field in dataclasses.fields(Reading)}


class GlowplugModelLoader(DefaultModelLoader):  # type: ignore[misc]
    """vLLM's own loader for safetensors, but for how their bytes are read.

    ``--model-loader-extra-config`` takes the fields of :class:`~glowplug.weights.Reading`.
    """

    counter_before_loading_weights: float = 0.0  # as vLLM has it: when the first weights were asked for

    def __init__(self, load_config: Any) -> None:
        options = load_config.model_loader_extra_config or {}
        if not isinstance(options, dict) or not options.keys() <= _OPTIONS:
            raise InvalidInput(
                f"--model-loader-extra-config cannot be {options!r}.",
                remedy=f"For --load-format {LOAD_FORMAT} it takes {', '.join(sorted(_OPTIONS))}.",
            )
        self._reading = Reading(**options)
        super().__init__(
            dataclasses.replace(load_config, load_format="safetensors", model_loader_extra_config={})
        )

    def _get_weights_iterator(self, source: Any) -> Iterator[tuple[str, Any]]:
        _, files, _, _ = self._prepare_weights(
            source.model_or_path,
            source.subfolder,
            source.revision,
            source.fall_back_to_pt,
            source.allow_patterns_overrides,
        )
        if self.counter_before_loading_weights == 0.0:
            self.counter_before_loading_weights = time.perf_counter()
        device = torch.get_default_device()  # vLLM has set it to the one that the model is on
        for name, tensor in iterate(sorted(files), device, wanted=self._is_wanted, reading=self._reading):
            yield source.prefix + name, tensor

    def _is_wanted(self, name: str) -> bool:
        return not should_skip_weight(name, self.local_expert_ids)


def register() -> None:
    """Called by vLLM in each of its processes, perhaps more than once."""
    register_model_loader(LOAD_FORMAT)(GlowplugModelLoader)

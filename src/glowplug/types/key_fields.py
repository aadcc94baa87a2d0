"""The fields of a snapshot's key, in the words in which people are told about them."""

from __future__ import annotations

KEY_FIELD_WORDS = {
    "image": "the image's id: the files that the memory was made from",
    "command": "what runs, with its arguments",
    "port": "where it listens",
    "env": "its environment, values included (secrets are not part of it)",
    "secrets": "names of its secrets; with secrets_in_snapshot also whose they are",
    "code": "class or function, and a digest of the Python files beside it",
    "volumes": "host folders that it sees",
    "snapshot": "what is done before memory is captured: warm-up, canary, hook",
    "resources": "processors, memory and GPUs that it may use",
    "runtime": "the programs that write and read memory images, with their versions",
    "runtime_flags": "how those programs are called",
    "cpu_model": "the processor's name",
    "cpu_features": "instructions that every core has, and that libraries may have chosen",
    "kernel": "the host's kernel, major and minor",
    "gpu_chip": "the GPU's name and memory",
    "gpu_driver": "the GPU driver's version",
}
"""Every field to what it means, in the order in which differences are told: the user's own choices first."""

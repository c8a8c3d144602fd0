"""The other end of `tests.peers.remote`: runs in a peer's environment, and imports nothing of this project."""

import json
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch


def serve(functions: dict[str, Callable[..., Any]]) -> None:
    """Run the calls in the file that the first argument names and write what they return to the second.

    A function gets tensors and settings by name and returns a dictionary of tensors.
    """
    torch.set_num_threads(1)
    sent = np.load(sys.argv[1], allow_pickle=False)
    plan = json.loads(str(sent["plan"]))
    out: dict[str, np.ndarray] = {}
    for i, (name, settings) in enumerate(plan):
        given = {key.split("/", 1)[1]: torch.from_numpy(sent[key]) for key in sent.files if key.startswith(f"{i}/")}
        for key, value in functions[name](**given, **settings).items():
            out[f"{i}/{key}"] = value.detach().numpy()
    np.savez(sys.argv[2], **out)

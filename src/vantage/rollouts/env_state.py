"""State of an environment as tensors and plain values, so that a run can be resumed bit for bit.

Supported are Gymnasium's classic-control and toy-text environments (and their native vector versions), its MuJoCo
environments, and any environment or wrapper that has `state_dict` and `load_state_dict` itself. For others `save`
raises `CannotSave`, which names the reason.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from vantage.core.errors import TrainingError

State = dict[str, Any]

_ATTRIBUTES_TELL_ALL = ("gymnasium.envs.classic_control.", "gymnasium.envs.toy_text.", "gymnasium.envs.mujoco.")
"""Packages whose environments keep their state in attributes (and in MuJoCo's data) and nowhere else."""

_STATELESS_WRAPPERS = {
    "OrderEnforcing", "PassiveEnvChecker", "TransformObservation", "TransformAction", "TransformReward",
    "FlattenObservation", "FilterObservation", "RescaleAction", "RescaleObservation", "ClipAction", "ClipReward",
    "DtypeObservation", "GrayscaleObservation", "ResizeObservation", "ReshapeObservation", "DiscretizeAction",
    "DiscretizeObservation",
}  # fmt: skip

_MUJOCO_DERIVED = (
    "xpos", "xquat", "xmat", "xipos", "ximat", "geom_xpos", "geom_xmat", "site_xpos", "site_xmat", "subtree_com", "cinert",
    "cvel", "cacc", "cfrc_ext", "cfrc_int", "qfrc_actuator", "qfrc_constraint", "qfrc_passive", "actuator_force", "sensordata",
)  # fmt: skip
"""Derived quantities that MuJoCo computes within a step and some environments read before the next one."""


class CannotSave(TrainingError):
    """The state of this environment cannot be saved; the message names the class."""


def save(env: Any) -> State:
    """Return the state of a single or native vector environment, wrappers included.

    Raises:
        CannotSave: the environment or one of its wrappers does not give its state.
    """
    layers: list[State] = []
    while True:
        if hasattr(type(env), "state_dict") and hasattr(type(env), "load_state_dict"):
            # An object with `state_dict` saves everything below it too.
            return {"layers": layers, "own": encode(dict(env.state_dict()))}
        below = vars(env).get("env")
        if below is None:
            return {"layers": layers, "core": _save_core(env)}
        layers.append(_save_wrapper(env))
        env = below


def load(env: Any, state: Mapping[str, Any]) -> None:
    """Restore a state that `save` returned; the environment must have the same class and wrappers.

    Raises:
        CannotSave: the wrappers differ.
    """
    for layer in state["layers"]:
        if layer["class"] != type(env).__name__:
            raise CannotSave(f"the saved state has a wrapper {layer['class']}, the environment {type(env).__name__}")
        if layer["class"] == "TimeLimit":
            env._elapsed_steps = layer["elapsed"]
        elif layer["class"] == "OrderEnforcing":
            env._has_reset = layer["reset"]
        env = env.env
    if "own" in state:
        env.load_state_dict(decode(state["own"]))
    else:
        _load_core(env, state["core"])


def _save_wrapper(env: Any) -> State:
    name = type(env).__name__
    if not type(env).__module__.startswith("gymnasium.wrappers."):
        raise CannotSave(f"the wrapper {name} has no state_dict")
    if name == "TimeLimit":
        return {"class": name, "elapsed": env._elapsed_steps}
    if name == "OrderEnforcing":
        return {"class": name, "reset": bool(env._has_reset)}
    if name not in _STATELESS_WRAPPERS:
        raise CannotSave(f"the wrapper {name} keeps a state that cannot be saved")
    return {"class": name}


def _save_core(env: Any) -> State:
    if not type(env).__module__.startswith(_ATTRIBUTES_TELL_ALL):
        raise CannotSave(f"the environment {type(env).__name__} has no state_dict")
    attributes = {}
    for name, value in vars(env).items():
        if name != "_np_random" and _is_state(value):
            attributes[name] = encode(value)
    generator = vars(env).get("_np_random")
    state: State = {
        "class": type(env).__name__,
        "attributes": attributes,
        "random": encode(generator.bit_generator.state) if generator is not None else None,
    }
    if hasattr(env, "model") and hasattr(env, "data"):
        state["mujoco"] = _save_mujoco(env)
    return state


def _load_core(env: Any, state: Mapping[str, Any]) -> None:
    if state["class"] != type(env).__name__:
        raise CannotSave(f"the saved state is of {state['class']}, the environment is {type(env).__name__}")
    if state["random"] is not None:
        saved = decode(state["random"])
        bits = getattr(np.random, saved["bit_generator"])()
        bits.state = saved
        env._np_random = np.random.Generator(bits)
    for name, value in state["attributes"].items():
        setattr(env, name, decode(value))
    if "mujoco" in state:
        _load_mujoco(env, state["mujoco"])


def _save_mujoco(env: Any) -> State:
    mujoco: Any = importlib.import_module("mujoco")
    kind = mujoco.mjtState.mjSTATE_INTEGRATION
    integration = np.empty(mujoco.mj_stateSize(env.model, kind))
    mujoco.mj_getState(env.model, env.data, integration, kind)
    derived = {name: torch.from_numpy(np.array(getattr(env.data, name))) for name in _MUJOCO_DERIVED}
    return {"integration": torch.from_numpy(integration), "derived": derived}


def _load_mujoco(env: Any, state: Mapping[str, Any]) -> None:
    mujoco: Any = importlib.import_module("mujoco")

    # No mj_forward: it would change the warm start. The next step computes everything from the integration state.
    mujoco.mj_setState(env.model, env.data, state["integration"].numpy(), mujoco.mjtState.mjSTATE_INTEGRATION)
    for name, values in state["derived"].items():
        getattr(env.data, name)[...] = values.numpy()


def _is_state(value: Any) -> bool:
    """Return whether an attribute is state: numbers or text; transition tables, spaces and windows do not change."""
    if isinstance(value, np.ndarray):
        return value.dtype.kind in "fiub"
    if isinstance(value, list | tuple):
        return all(_is_state(item) for item in value)
    return value is None or isinstance(value, bool | int | float | str | np.number | np.bool_)


def encode(value: Any) -> Any:
    """Convert numbers, arrays, text and containers of these to values that `torch.load(weights_only=True)` reads."""
    if isinstance(value, np.ndarray):
        return {"array": torch.from_numpy(np.array(value))}
    if isinstance(value, np.number | np.bool_):
        return {"scalar": torch.from_numpy(np.array(value))}
    if isinstance(value, bool) or value is None or isinstance(value, float | str | torch.Tensor):
        return value
    if isinstance(value, int):
        # The state of PCG64 has 128 bits.
        return value if -(2**63) <= value < 2**63 else {"integer": str(value)}
    if isinstance(value, tuple):
        return {"tuple": [encode(item) for item in value]}
    if isinstance(value, list):
        return [encode(item) for item in value]
    if isinstance(value, Mapping):
        return {"mapping": {str(key): encode(item) for key, item in value.items()}}
    raise CannotSave(f"a state of type {type(value).__name__} cannot be saved: numbers, arrays and text can")


def decode(value: Any) -> Any:
    """Invert `encode`."""
    if isinstance(value, list):
        return [decode(item) for item in value]
    if not isinstance(value, Mapping):
        return value
    ((kind, held),) = value.items()
    if kind == "array":
        return held.numpy().copy()
    if kind == "scalar":
        return held.numpy()[()]
    if kind == "integer":
        return int(held)
    if kind == "tuple":
        return tuple(decode(item) for item in held)
    return {key: decode(item) for key, item in held.items()}

"""Construction of a Gymnasium environment, with errors that name the remedy."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Mapping
from typing import Any

from vantage.core.errors import MissingLibrary, UserError, nearest, require

EXTRAS = {"mujoco": "control", "box2d": "control", "pygame": "control", "ale_py": "atari", "cv2": "atari"}


def make_env(env_id: str, options: Mapping[str, Any]) -> Any:
    """Make a single environment; ids that begin with `ALE/` are Atari games, with the usual preprocessing.

    Raises:
        UserError: no environment has this id (the message has the nearest ones), or it takes no such options.
        MissingLibrary: a library that the environment needs is not installed; the message names the extra.
    """
    gymnasium = require("gymnasium", "control")
    if env_id.startswith("ALE/"):
        return make_atari(env_id, options)
    spec = gymnasium.registry.get(env_id)
    if spec is None and ":" not in env_id:
        raise UserError(f"unknown environment {env_id!r}{nearest(env_id, gymnasium.registry)}")
    if str(getattr(spec, "entry_point", "")).startswith("gymnasium.envs.mujoco"):
        _hear_mujoco()
    return _make(gymnasium, env_id, options)


def make_atari(env_id: str, options: Mapping[str, Any]) -> Any:
    """Make an Atari game with the preprocessing of Mnih et al. (2015).

    An episode begins with up to 30 no-op steps; a decision lasts 4 frames, the maximum of the last two of which is the
    observation, 84 by 84 grey, stacked over 4 decisions: uint8 [4, 84, 84]. The option `terminal_on_life_loss` ends an episode
    with a life; `repeat_action_probability` gives sticky actions, by default none. Rewards are the game's own.
    """
    gymnasium = require("gymnasium", "control")
    gymnasium.register_envs(require("ale_py", "atari"))
    require("cv2", "atari")
    if env_id not in gymnasium.registry:
        games = [name for name in gymnasium.registry if name.startswith("ALE/")]
        raise UserError(f"unknown environment {env_id!r}{nearest(env_id, games)}")
    given = {"frameskip": 1, "repeat_action_probability": 0.0, **options}
    lives = bool(given.pop("terminal_on_life_loss", False))
    env = _make(gymnasium, env_id, given)
    env = gymnasium.wrappers.AtariPreprocessing(env, noop_max=30, frame_skip=4, terminal_on_life_loss=lives)
    return gymnasium.wrappers.FrameStackObservation(env, 4)


def _make(gymnasium: Any, env_id: str, options: Mapping[str, Any]) -> Any:
    try:
        return gymnasium.make(env_id, disable_env_checker=True, **options)
    except (gymnasium.error.DependencyNotInstalled, ModuleNotFoundError) as error:
        missing = next((extra for module, extra in EXTRAS.items() if module in str(error).lower()), None)
        remedy = f": pip install 'vantage[{missing}]'" if missing else ""
        raise MissingLibrary(f"{env_id} needs a library that is not installed ({error}){remedy}") from error
    except gymnasium.error.Error as error:
        raise UserError(f"{env_id} cannot be made: {error}") from None
    except TypeError as error:
        raise UserError(f"{env_id} does not take the options {dict(options)}: {error}") from None


def _hear_mujoco() -> None:
    """Raise MuJoCo's warnings as Python's; by default MuJoCo writes a log file into the working folder."""
    try:
        mujoco: Any = importlib.import_module("mujoco")
    except ModuleNotFoundError:
        return  # gymnasium.make gives a better error
    if hasattr(mujoco, "get_mju_user_warning") and mujoco.get_mju_user_warning() is None:
        mujoco.set_mju_user_warning(_warn)


def _warn(message: str) -> None:
    # Deprecations in the model files that Gymnasium ships are not the user's concern.
    if "deprecated" not in message:
        warnings.warn(f"MuJoCo: {message}", RuntimeWarning, stacklevel=2)

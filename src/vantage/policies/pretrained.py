"""Reading and atomic writing of model folders in Hugging Face format."""

from __future__ import annotations

import contextlib
import json
import shutil
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from vantage.core.checkpoint import share
from vantage.core.errors import UserError, nearest, require

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def dtype_of(name: str | torch.dtype) -> torch.dtype:
    """Return the torch type of a name.

    Raises:
        UserError: the name is not of a floating-point type of model weights.
    """
    if isinstance(name, torch.dtype):
        return name
    if name not in DTYPES:
        raise UserError(f"dtype={name!r} is not known{nearest(name, DTYPES)} (known: {', '.join(DTYPES)})")
    return DTYPES[name]


def read_pretrained(folder: str | Path, dtype: str | torch.dtype = "float32") -> tuple[Any, Any]:
    """Return (causal language model, tokenizer) of a folder; nothing is downloaded and no code of the folder is run.

    A tokenizer without padding token gets its end token as padding token, with a warning.

    Raises:
        UserError: there is no such folder, it has no `config.json`, no weights or no tokenizer, its architecture is no causal
            language model, or its tokenizer has no end token.
    """
    transformers = require("transformers", "language")
    place = Path(folder)
    kind = dtype_of(dtype)
    if not place.is_dir():
        raise UserError(
            f"there is no model folder {place}: give a folder in Hugging Face format, or make one with `vantage new-model`"
        )
    _check_config(place)
    tokenizer = _tokenizer(transformers, place)
    with quiet():
        try:
            config = transformers.AutoConfig.from_pretrained(place, local_files_only=True, trust_remote_code=False)
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"model folder {place}: config.json cannot be read: {_first(error)}") from error
        if type(config) not in transformers.AutoModelForCausalLM._model_mapping:
            raise UserError(
                f"model folder {place} holds a {config.model_type!r}, which is not a causal language model of transformers"
            )
        try:
            model, loaded = transformers.AutoModelForCausalLM.from_pretrained(
                place, local_files_only=True, trust_remote_code=False, dtype=kind, output_loading_info=True
            )
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise UserError(f"model folder {place}: the weights cannot be read: {_first(error)}") from error
    missing = sorted(loaded["missing_keys"])
    if missing:
        # They would keep their random initialisation.
        listed = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        raise UserError(f"model folder {place}: the weights lack {listed}, which config.json asks for")
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        raise UserError(
            f"model folder {place}: the tokenizer has {len(tokenizer)} tokens, the model only {rows} rows for them"
        )
    return model, tokenizer


def _check_config(place: Path) -> None:
    adapters = place / "adapter_config.json"
    if adapters.is_file():
        base = json.loads(adapters.read_text(encoding="utf-8")).get("base_model_name_or_path")
        raise UserError(
            f"model folder {place} holds adapters for {base!r}, not a model: merge them into it first (peft's merge_and_unload), or"
            " save the policy with merged=True"
        )
    path = place / "config.json"
    if not path.is_file():
        inside = ", ".join(sorted(p.name for p in place.iterdir())[:6]) or "nothing"
        raise UserError(
            f"model folder {place} has no config.json (it holds: {inside}); give the folder that save_pretrained wrote"
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"model folder {place}: config.json is no JSON: {error}") from error
    if not isinstance(content, Mapping) or "model_type" not in content:
        raise UserError(f"model folder {place}: config.json names no model_type, so it is not one of a language model")


def _tokenizer(transformers: Any, place: Path) -> Any:
    names = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt")
    if not any((place / name).is_file() for name in names):
        raise UserError(
            f"model folder {place} has no tokenizer (none of {', '.join(names)}): save one beside the model"
        )
    with quiet():
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(
                place, local_files_only=True, trust_remote_code=False
            )
        except Exception as error:  # the tokenizers' backends raise exceptions of many types
            raise UserError(f"model folder {place}: the tokenizer cannot be read: {_first(error)}") from error
    if tokenizer.eos_token_id is None:
        raise UserError(f"model folder {place}: the tokenizer has no end token; set eos_token in tokenizer_config.json")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
        warnings.warn(
            f"model folder {place}: the tokenizer has no padding token; its end token {tokenizer.eos_token!r} is used",
            stacklevel=4,
        )
    return tokenizer


def _first(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Disable transformers' progress bars within the context."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


@contextlib.contextmanager
def _untied(model: Any) -> Iterator[None]:
    configs = {id(config): config for config in (model.config, model.config.get_text_config())}.values()
    flags = [getattr(config, "tie_word_embeddings", False) for config in configs]
    for config in configs:
        config.tie_word_embeddings = False
    try:
        yield
    finally:
        for config, flag in zip(configs, flags, strict=True):
            config.tie_word_embeddings = flag


def write_pretrained(
    folder: str | Path, model: Any, tokenizer: Any, state: Mapping[str, Any] | None = None, *, untie: bool = False
) -> None:
    """Write model and tokenizer atomically: the folder is the old one or the complete new one.

    Args:
        folder: replaced when it exists.
        model: has `save_pretrained`.
        tokenizer: has `save_pretrained`.
        state: weights to write instead of the model's own.
        untie: state in the folder's configuration that output layer and embedding are two weights.

    Raises:
        UserError: the folder cannot be written.
    """
    target = Path(folder)
    fresh, old = target.with_name(f".{target.name}.new"), target.with_name(f".{target.name}.old")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        for leftover in (fresh, old):
            shutil.rmtree(leftover, ignore_errors=True)
        fresh.mkdir()
        with quiet(), _untied(model) if untie else contextlib.nullcontext():
            model.save_pretrained(fresh, **({} if state is None else {"state_dict": dict(state)}))
            tokenizer.save_pretrained(fresh)
        for path in fresh.glob("*.safetensors"):
            share(path)
        if target.exists():
            target.rename(old)
        fresh.rename(target)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise UserError(f"model folder {target} cannot be written: {error}") from error

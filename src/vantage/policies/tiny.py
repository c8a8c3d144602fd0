"""Small causal language models with random weights and a character-level tokenizer, in Hugging Face format."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vantage.core.errors import UserError, require, unknown
from vantage.policies.pretrained import write_pretrained

PRINTABLE = "\n" + "".join(chr(code) for code in range(32, 127))
"""Default alphabet: newline and every printable ASCII character."""

PAD, EOS, UNKNOWN = "<pad>", "<eos>", "<unk>"
ROLES = ("system", "user", "assistant", "tool")

# A turn is its role's token, the text, and the end token: <user>2+2=<eos><assistant>4<eos>
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<' + message['role'] + '>' + message['content'] + '<eos>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)


@dataclass(frozen=True)
class Shape:
    """Sizes of a decoder: width, feed-forward width, layers, query heads, key-value heads, and vocabulary rows.

    `vocabulary` 0 gives one row per token of the tokenizer; a larger one adds unused rows, so that the output layer has the
    cost of a full-size model's.
    """

    width: int
    inner: int
    layers: int
    heads: int
    shared_heads: int
    vocabulary: int = 0
    positions: int = 2048


PRESETS: dict[str, Shape] = {
    "tiny": Shape(96, 384, 2, 6, 6),  # 0.3 M parameters
    "small": Shape(128, 352, 4, 4, 4),  # 0.8 M
    "medium": Shape(256, 640, 4, 8, 4),  # 3 M
    "large": Shape(512, 1408, 8, 8, 4, positions=4096),  # 24 M
    "huge": Shape(896, 4864, 24, 14, 2, vocabulary=151_936, positions=32_768),  # 0.5 B
}

ARCHITECTURES = ("llama", "qwen2", "qwen3")


def new_tokenizer(alphabet: str = PRINTABLE) -> Any:
    """Return a tokenizer in which every character of the alphabet is one token; other characters become <unk>.

    Text that contains the name of a special token (`<eos>`, `<user>`, ...) is read as that token.
    """
    require("transformers", "language")
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(set(alphabet))
    special = [PAD, EOS, UNKNOWN, *(f"<{role}>" for role in ROLES)]
    vocabulary = {token: index for index, token in enumerate([*special, *letters])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNKNOWN,
        additional_special_tokens=[f"<{role}>" for role in ROLES],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        padding_side="left",
        model_input_names=["input_ids", "attention_mask"],
    )


def new_config(shape: Shape, architecture: str, tokenizer: Any) -> Any:
    """Return the transformers configuration of this shape.

    Narrow models learn arithmetic several times faster with untied embeddings and weights of standard deviation
    1 / sqrt(width) than with full-size models' values (tied, 0.02), which are used for a full-size vocabulary.
    """
    require("transformers", "language")
    from transformers import LlamaConfig, Qwen2Config, Qwen3Config

    if architecture not in ARCHITECTURES:
        raise unknown("architecture", architecture, ARCHITECTURES)
    kinds: dict[str, Any] = {"llama": LlamaConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config}
    return kinds[architecture](
        vocab_size=max(shape.vocabulary, len(tokenizer)),
        hidden_size=shape.width,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.shared_heads,
        head_dim=shape.width // shape.heads,
        max_position_embeddings=shape.positions,
        tie_word_embeddings=bool(shape.vocabulary),
        initializer_range=0.02 if shape.vocabulary else shape.width**-0.5,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        use_cache=True,
    )


def build(
    preset: str = "tiny", architecture: str = "llama", alphabet: str = PRINTABLE, seed: int = 0
) -> tuple[Any, Any]:
    """Return a (model, tokenizer) with random weights; the global random state does not change.

    Args:
        preset: a name of `PRESETS`: about 0.3 M ("tiny"), 0.8 M, 3 M, 24 M and 0.5 B parameters.
        architecture: "llama", "qwen2" or "qwen3".
        alphabet: characters that are tokens.
        seed: seed of the weights.

    Raises:
        UserError: the preset or architecture is not known.
    """
    require("transformers", "language")
    import torch
    from transformers import AutoModelForCausalLM

    if preset not in PRESETS:
        raise unknown("preset", preset, PRESETS)
    tokenizer = new_tokenizer(alphabet)
    config = new_config(PRESETS[preset], architecture, tokenizer)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return model, tokenizer


_OF_MODEL = re.compile(
    r"(config|generation_config|tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab|adapter_config|.*\.index)\.json"
    r"|merges\.txt|chat_template\.jinja|README\.md|.*\.safetensors|tokenizer\.model"
)
"""Files of a model folder in Hugging Face format."""


def new_model(
    folder: str | Path,
    preset: str = "tiny",
    architecture: str = "llama",
    alphabet: str = PRINTABLE,
    seed: int = 0,
    force: bool = False,
) -> Path:
    """Write a small model (configuration, safetensors, tokenizer) into a new folder; see `build`.

    Args:
        folder: folder to write; it must not exist or be empty, unless `force`.
        preset: size of the model.
        architecture: "llama", "qwen2" or "qwen3".
        alphabet: characters that are tokens.
        seed: seed of the weights.
        force: replace the model that the folder holds; a folder with anything else in it is refused all the same.

    Raises:
        UserError: the preset or architecture is not known, the folder is not empty, or it cannot be written.
    """
    target = Path(folder)
    if target.exists() and (not target.is_dir() or any(target.iterdir())) and not force:
        raise UserError(f"{target} exists and is not empty: choose another folder, or add --force")
    odd = (
        sorted(path.name for path in target.iterdir() if not _OF_MODEL.fullmatch(path.name)) if target.is_dir() else []
    )
    if odd or target.is_file():
        raise UserError(
            f"{target} holds what is no part of a model ({', '.join(odd[:3]) or 'it is a file'}): --force replaces models alone;"
            " choose another folder"
        )
    model, tokenizer = build(preset, architecture, alphabet, seed)
    write_pretrained(target, model, tokenizer)
    return target

"""Small models made on the spot, and what is said of folders that are none."""

import contextlib
import json
import shutil

import pytest
import torch

from vantage.core.errors import UserError
from vantage.policies.language import LanguagePolicy
from vantage.policies.pretrained import read_pretrained
from vantage.policies.tiny import PRESETS, PRINTABLE, build, new_config, new_model, new_tokenizer

ROUGH_SIZES = {"tiny": 0.3e6, "small": 0.8e6, "medium": 3e6, "large": 25e6, "huge": 0.5e9}


def test_every_character_is_a_token_and_text_comes_back():
    tokenizer = new_tokenizer()
    text = PRINTABLE + "  two  spaces, punctuation ! ? . don't\n\nend "
    ids = tokenizer(text)["input_ids"]
    assert len(ids) == len(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode([*ids, tokenizer.eos_token_id, tokenizer.pad_token_id], skip_special_tokens=True) == text
    assert tokenizer.batch_decode([ids]) == [text]


def test_other_characters_are_unknown():
    tokenizer = new_tokenizer("ab")
    assert tokenizer("aéb")["input_ids"] == [
        *tokenizer("a")["input_ids"],
        tokenizer.unk_token_id,
        *tokenizer("b")["input_ids"],
    ]
    assert len({tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id}) == 3


def test_the_chat_template_costs_one_token_a_role():
    policy = LanguagePolicy.new()
    ids = policy.encode([{"role": "system", "content": "be kind"}, {"role": "user", "content": "hi"}])
    assert policy.tokenizer.decode(ids) == "<system>be kind<eos><user>hi<eos><assistant>"
    assert len(ids) == len("be kind") + len("hi") + 5


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_presets_have_about_the_size_that_they_promise(preset):
    with torch.device("meta"):
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_config(new_config(PRESETS[preset], "llama", new_tokenizer()))
    count = sum(p.numel() for p in model.parameters())
    assert abs(count / ROUGH_SIZES[preset] - 1) < 0.1


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3"])
def test_a_new_model_is_read_back_the_same(tmp_path, architecture):
    folder = new_model(tmp_path / "m", architecture=architecture, alphabet="0123456789+=", seed=3)
    model, tokenizer = read_pretrained(folder)
    again, _ = build(architecture=architecture, alphabet="0123456789+=", seed=3)
    assert model.config.model_type == architecture
    assert tokenizer.decode(tokenizer("12+34=")["input_ids"]) == "12+34="
    for (name, one), (_, two) in zip(model.named_parameters(), again.named_parameters()):
        assert torch.equal(one, two), name
    other, _ = build(architecture=architecture, alphabet="0123456789+=", seed=4)
    assert not torch.equal(next(other.parameters()), next(again.parameters()))
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id


def test_making_a_model_leaves_the_random_state_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    build(seed=5)
    assert torch.equal(torch.rand(3), expected)


def test_nothing_is_overwritten_without_force(tmp_path):
    folder = tmp_path / "m"
    new_model(folder, seed=1)
    before = (folder / "model.safetensors").read_bytes()
    with pytest.raises(UserError, match="--force"):
        new_model(folder, seed=2)
    assert (folder / "model.safetensors").read_bytes() == before
    new_model(folder, seed=2, force=True)
    assert (folder / "model.safetensors").read_bytes() != before
    (tmp_path / "empty").mkdir()
    new_model(tmp_path / "empty")
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="exists and is not empty"):
        new_model(tmp_path / "file")


def test_unknown_names_are_answered_with_the_known_ones(tmp_path):
    with pytest.raises(UserError, match=r"preset 'tinny'.*tiny"):
        new_model(tmp_path / "m", preset="tinny")
    with pytest.raises(UserError, match=r"architecture 'gpt5'.*llama"):
        new_model(tmp_path / "m", architecture="gpt5")
    assert not (tmp_path / "m").exists()


# folders that are none -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return new_model(tmp_path_factory.mktemp("models") / "m")


def broken(whole, tmp_path, change):
    folder = tmp_path / "broken"
    shutil.copytree(whole, folder)
    change(folder)
    return folder


def set_config(folder, file="config.json", **values):
    path = folder / file
    content = json.loads(path.read_text())
    content.update(values)
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))


CASES = {
    "no such folder": (lambda folder: shutil.rmtree(folder), "no model folder"),
    "no configuration": (lambda folder: (folder / "config.json").unlink(), "no config.json"),
    "configuration that is no JSON": (lambda folder: (folder / "config.json").write_text("{"), "no JSON"),
    "configuration of something else": (lambda folder: set_config(folder, model_type=None), "no model_type"),
    "no language model": (lambda folder: set_config(folder, model_type="vit"), "not a causal language model"),
    "unknown architecture": (lambda folder: set_config(folder, model_type="nonesuch"), "config.json"),
    "no tokenizer": (
        lambda folder: [(folder / name).unlink() for name in ("tokenizer.json", "tokenizer_config.json")],
        "no tokenizer",
    ),
    "broken tokenizer": (lambda folder: (folder / "tokenizer.json").write_text("{}"), "tokenizer cannot be read"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "weights cannot be read"),
    "truncated weights": (
        lambda folder: (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:1000]),
        "weights cannot be read",
    ),
    "weights of fewer layers": (lambda folder: set_config(folder, num_hidden_layers=3), "weights lack"),
    "no end token": (lambda folder: set_config(folder, "tokenizer_config.json", eos_token=None), "no end token"),
}


@pytest.mark.parametrize("case", sorted(CASES))
def test_what_is_wrong_with_a_folder_is_said(case, whole, tmp_path):
    change, match = CASES[case]
    with pytest.raises(UserError, match=match) as caught:
        LanguagePolicy.load(broken(whole, tmp_path, change))
    assert "broken" in str(caught.value)


def test_a_tokenizer_without_padding_pads_with_its_end_and_says_so(whole, tmp_path):
    folder = broken(whole, tmp_path, lambda folder: set_config(folder, "tokenizer_config.json", pad_token=None))
    with pytest.warns(UserWarning, match="no padding token"):
        policy = LanguagePolicy.load(folder)
    assert policy.tokenizer.pad_token_id == policy.tokenizer.eos_token_id


def test_an_unknown_type_is_named(whole):
    with pytest.raises(UserError, match=r"float23.*float32"):
        LanguagePolicy.load(whole, dtype="float23")


@pytest.mark.parametrize("key", ["AutoConfig", "AutoModelForCausalLM", "AutoTokenizer"])
def test_code_in_a_model_folder_is_never_run(key, tmp_path, monkeypatch):
    new_model(tmp_path / "m")
    (tmp_path / "m" / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass X: pass\n")
    for name in ("config.json", "tokenizer_config.json"):
        path = tmp_path / "m" / name
        held = json.loads(path.read_text())
        held["auto_map"] = {key: ["evil.X", "evil.X"] if key == "AutoTokenizer" else "evil.X"}
        held["model_type"] = "unheard-of" if key == "AutoConfig" and name == "config.json" else held.get("model_type")
        path.write_text(json.dumps(held))
    monkeypatch.setattr("builtins.input", lambda *words: pytest.fail("it asks on standard input"))
    with contextlib.suppress(UserError):
        read_pretrained(tmp_path / "m")
    assert not (tmp_path / "ran").exists()


def test_force_replaces_models_alone(tmp_path):
    new_model(tmp_path / "m", seed=1)
    (tmp_path / "m" / "src").mkdir()
    (tmp_path / "m" / "src" / "thesis.txt").write_text("years")
    with pytest.raises(UserError, match=r"holds what is no part of a model .src.*--force replaces models alone"):
        new_model(tmp_path / "m", seed=2, force=True)
    assert (tmp_path / "m" / "src" / "thesis.txt").read_text() == "years"

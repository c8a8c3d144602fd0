"""Adapters: what is trainable, what is saved, and frozen policies that share the weights."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.policies.language_tools import batch_of, make
from vantage.core.checkpoint import load_tensors, save_tensors
from vantage.core.errors import UserError
from vantage.integrations.vllm import VllmEngine
from vantage.policies.language import LanguagePolicy
from vantage.policies.lora import LoraSettings

peft = pytest.importorskip("peft")

WANT = frozenset({"logp", "entropy"})
SETTINGS = LoraSettings(rank=2, alpha=4.0, targets=("q_proj", "down_proj"))


@pytest.fixture
def folder(tmp_path):
    make(dtype=torch.float32).save(tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def batch():
    return batch_of([5, 3, 7], [6, 2, 4])


def moved(policy):
    """Give the adapters weights that matter."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if ".lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return policy


def test_adapters_alone_are_trainable_and_begin_as_nothing(folder, batch):
    plain, policy = LanguagePolicy.load(folder), LanguagePolicy.load(folder, lora=SETTINGS)
    assert torch.equal(policy.evaluate(batch, WANT).logp, plain.evaluate(batch, WANT).logp)
    trainable = [name for name, p in policy.named_parameters() if p.requires_grad]
    assert len(trainable) == 2 * 2 * 2
    assert all(".lora_" in name for name in trainable)
    policy.evaluate(batch, WANT).logp.sum().backward()
    for name, parameter in policy.named_parameters():
        assert (parameter.grad is not None) == (name in trainable), name


def test_the_packed_layers_see_the_adapters(folder, batch):
    policy = moved(LanguagePolicy.load(folder, lora=SETTINGS))
    logp = policy.evaluate(batch, WANT).logp
    tokens = torch.cat([batch.observation["tokens"][0, :5], batch.action[0]])
    scores = torch.log_softmax(policy.model(input_ids=tokens[None]).logits[0, 4:-1], -1)
    torch.testing.assert_close(logp[0], scores.gather(-1, batch.action[0, :, None]).squeeze(-1), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("tied", [True, False])
def test_adapters_on_the_output_layer_are_evaluated_trained_and_saved(batch, tmp_path, tied):
    config = make().model.config
    config.tie_word_embeddings = tied
    make(dtype=torch.float32, config=config).save(tmp_path / "base")
    policy = LanguagePolicy.load(tmp_path / "base", lora=LoraSettings(rank=2, alpha=4.0, targets=("q_proj", "lm_head")))
    reference = policy.frozen()
    before = policy.evaluate(batch, WANT).logp.detach()
    moved(policy)
    tokens = torch.cat([batch.observation["tokens"][0, :5], batch.action[0]])[None]
    logits = policy.model(input_ids=tokens).logits
    logp = policy.evaluate(batch, WANT | {"distribution"})
    scores = torch.log_softmax(logits[0, 4:-1], -1)
    torch.testing.assert_close(logp.logp[0], scores.gather(-1, batch.action[0, :, None])[:, 0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(torch.log_softmax(logp.distribution[0], -1), scores, atol=1e-5, rtol=1e-5)
    logp.logp[0].sum().backward()
    mine = {name: p.grad.clone() for name, p in policy.named_parameters() if p.requires_grad}
    policy.zero_grad()
    scores.gather(-1, batch.action[0, :, None]).sum().backward()
    assert sum("lm_head" in name for name in mine) == 2
    for name, parameter in policy.named_parameters():
        if parameter.requires_grad:
            assert float(parameter.grad.abs().max()) > 1e-3
            torch.testing.assert_close(mine[name], parameter.grad, atol=1e-4, rtol=1e-4)
    assert torch.equal(reference.evaluate(batch, WANT).logp, before)
    policy.save(tmp_path / "merged")
    assert policy.model.config.tie_word_embeddings is tied
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert merged.config.tie_word_embeddings is False
    torch.testing.assert_close(merged(input_ids=tokens).logits, logits, atol=1e-4, rtol=1e-4)
    loaded = LanguagePolicy.load(tmp_path / "merged").evaluate(batch, WANT).logp
    torch.testing.assert_close(loaded, policy.evaluate(batch, WANT).logp, atol=1e-4, rtol=1e-4)
    if tied:
        with pytest.raises(UserError, match="leave it out of lora_targets"):
            VllmEngine(policy)


def test_adapters_elsewhere_leave_the_tie(folder, tmp_path):
    moved(LanguagePolicy.load(folder, lora=SETTINGS)).save(tmp_path / "merged")
    merged = LanguagePolicy.load(tmp_path / "merged").model
    assert merged.config.tie_word_embeddings
    assert merged.lm_head.weight is merged.model.embed_tokens.weight


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ["q_proj"], "use_dora": True},
        {"target_modules": ["q_proj"], "use_rslora": True},
        {"target_modules": ["embed_tokens"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    ],
)
def test_adapters_of_others_are_refused(folder, tmp_path, settings):
    plain = LanguagePolicy.load(folder)
    wrapped = peft.get_peft_model(plain.model, peft.LoraConfig(task_type="CAUSAL_LM", **settings))
    for model in (wrapped, plain.model):
        with pytest.raises(UserError, match=r"holds adapters already.*merge_and_unload"):
            LanguagePolicy(model, plain.tokenizer)
    wrapped.save_pretrained(tmp_path / "adapter")
    with pytest.raises(UserError, match=r"holds adapters for .*base'.*merge"):
        LanguagePolicy.load(tmp_path / "adapter")


def test_a_frozen_policy_is_the_adapter_switched_off_or_as_it_was(folder, batch):
    policy = LanguagePolicy.load(folder, lora=SETTINGS)
    before = policy.evaluate(batch, WANT).logp.detach()
    reference = policy.frozen()
    weights = {p.data_ptr() for p in policy.model.parameters()}
    assert {p.data_ptr() for p in reference.parameters()} == weights  # no second copy
    moved(policy)
    halfway = policy.frozen()
    then = policy.evaluate(batch, WANT).logp.detach()
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if ".lora_" in name:
                parameter.mul_(2.0)
    now = policy.evaluate(batch, WANT).logp.detach()
    assert torch.equal(reference.evaluate(batch, WANT).logp, before)
    assert torch.equal(halfway.evaluate(batch, WANT).logp, then)
    assert torch.equal(policy.evaluate(batch, WANT).logp, now)
    assert not torch.equal(then, now)
    assert all(p.requires_grad for name, p in policy.named_parameters() if ".lora_" in name)
    assert not reference.evaluate(batch, WANT).logp.requires_grad


def test_a_frozen_policy_has_its_own_temperature(folder, batch):
    policy = LanguagePolicy.load(folder, lora=SETTINGS)
    reference = policy.frozen()
    reference.temperature = 2.0
    assert not torch.allclose(reference.evaluate(batch, WANT).logp, policy.evaluate(batch, WANT).logp)
    assert policy.temperature == 1.0


def test_state_is_the_adapters_and_survives_a_round_trip(folder, batch, tmp_path):
    policy = moved(LanguagePolicy.load(folder, lora=SETTINGS))
    frozen = policy.frozen()
    assert all(".lora_" in name for name in policy.state_dict())
    save_tensors(policy.state_dict(), tmp_path / "p.safetensors")
    save_tensors(frozen.state_dict(), tmp_path / "f.safetensors")
    other = LanguagePolicy.load(folder, lora=SETTINGS)
    twin = other.frozen()
    other.load_state_dict(load_tensors(tmp_path / "p.safetensors"))
    logp = policy.evaluate(batch, WANT).logp
    assert torch.equal(other.evaluate(batch, WANT).logp, logp)
    # A checkpoint is restored by copying into what state_dict returned.
    saved = load_tensors(tmp_path / "f.safetensors")
    for name, tensor in twin.state_dict().items():
        tensor.copy_(saved[name])
    assert torch.equal(twin.evaluate(batch, WANT).logp, logp.detach())


def test_the_merged_folder_is_a_plain_model(folder, batch, tmp_path):
    policy = moved(LanguagePolicy.load(folder, lora=SETTINGS))
    policy.save(tmp_path / "merged")
    merged = LanguagePolicy.load(tmp_path / "merged")
    assert not any(".lora_" in name for name, _ in merged.named_parameters())
    torch.testing.assert_close(
        merged.evaluate(batch, WANT).logp, policy.evaluate(batch, WANT).logp, atol=1e-5, rtol=1e-5
    )
    policy.save(tmp_path / "adapter", merged=False)
    names = {path.name for path in (tmp_path / "adapter").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors"} <= names
    assert "model.safetensors" not in names


def test_a_frozen_policy_can_be_saved(folder, batch, tmp_path):
    policy = moved(LanguagePolicy.load(folder, lora=SETTINGS))
    frozen = policy.frozen()
    then = policy.evaluate(batch, WANT).logp.detach()
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if ".lora_" in name:
                parameter.zero_()
    frozen.save(tmp_path / "then")
    torch.testing.assert_close(
        LanguagePolicy.load(tmp_path / "then").evaluate(batch, WANT).logp, then, atol=1e-5, rtol=1e-5
    )


def test_bad_settings_are_named(folder):
    with pytest.raises(UserError, match="rank=0"):
        LoraSettings(rank=0)
    with pytest.raises(UserError, match="alpha"):
        LoraSettings(alpha=0.0)
    with pytest.raises(UserError, match=r"no linear map wq.*q_proj"):
        LanguagePolicy.load(folder, lora=LoraSettings(targets=("wq",)))
    with pytest.raises(UserError, match=r"no linear map embed_tokens, input_layernorm.*lora_targets"):
        LanguagePolicy.load(folder, lora=LoraSettings(targets=("embed_tokens", "input_layernorm")))


def test_the_engine_samples_with_the_adapters(folder):
    from types import SimpleNamespace

    from vantage.core.protocols import Prompts
    from vantage.rollouts.language import LanguageEngine
    from vantage.rollouts.tokens.sampling import Sampling

    policy = LanguagePolicy.load(folder, lora=SETTINGS)
    engine = LanguageEngine(policy, sampling=Sampling(max_new_tokens=10))
    prompts = Prompts(torch.arange(2), ["12+3=", "7"])
    for _ in range(2):  # as they were made, and after they moved
        context = SimpleNamespace(generator=torch.Generator().manual_seed(0))
        rows = engine.sample(prompts, 4, context)
        judged = policy.evaluate(rows, WANT)
        assert float((judged.logp - rows.logp_old)[rows.mask].detach().abs().max()) < 1e-4
        moved(policy)

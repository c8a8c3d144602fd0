"""The language policy against the module's own forward, row by row."""

import copy
import itertools
import json
import warnings

import pytest
import torch
from transformers import Gemma2Config, GPT2Config, MistralConfig

from tests.policies.language_tools import batch_of, make, reference
from vantage.core.checkpoint import load_tensors, save_tensors
from vantage.core.errors import UserError
from vantage.core.trajectories import concatenate
from vantage.policies.language import LanguagePolicy
from vantage.policies.packing import inputs, pack

WANT = frozenset({"logp", "entropy", "hidden"})
RAGGED = ([5, 3, 7, 1, 5, 4], [6, 2, 1, 8, 0, 3])
GROUPED = ([6, 6, 6, 4, 4, 2], [5, 1, 7, 3, 3, 4], [0, 0, 0, 1, 1, 2])


def close(one, two, mask=None, tolerance=1e-10):
    difference = (one.detach().double() - two.detach().double()).abs()
    if mask is not None:
        difference = difference[mask]
    assert float(difference.max()) < tolerance


def gradients(policy, loss):
    policy.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}


def others():
    shape = {
        "vocab_size": 103,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "initializer_range": 0.3,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": None,
    }
    return {
        "gpt2": GPT2Config(vocab_size=103, n_embd=32, n_layer=2, n_head=4, n_positions=64, initializer_range=0.3),
        "gemma2": Gemma2Config(**shape, sliding_window=4, final_logit_softcapping=5.0, query_pre_attn_scalar=8),
        "mistral": MistralConfig(**shape, sliding_window=4),
    }


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("sharing", [False, True])
def test_values_and_gradients_are_those_of_unpadded_rows(architecture, sharing):
    policy = make(architecture, temperature=0.8, prefix_sharing=sharing)
    for arguments in (RAGGED, GROUPED):
        batch = batch_of(*arguments)
        judged = policy.evaluate(batch, WANT)
        logp, entropy, hidden = reference(policy, batch)
        for one, two in ((judged.logp, logp), (judged.entropy, entropy), (judged.hidden, hidden)):
            close(one, two, batch.mask)
            assert not one[~batch.mask].any()
        weight = torch.randn(batch.action.shape, dtype=torch.float64) * batch.mask
        ours = gradients(policy, (judged.logp * weight + 0.1 * judged.entropy * weight.flip(0)).sum())
        theirs = gradients(policy, (logp * weight + 0.1 * entropy * weight.flip(0) * batch.mask).sum())
        assert set(ours) == set(theirs)
        for name in ours:
            close(ours[name], theirs[name], tolerance=1e-9)


def test_float32_to_1e_5():
    policy = make(dtype=torch.float32)
    batch = batch_of(*GROUPED)
    logp, entropy, _ = reference(policy, batch)
    judged = policy.evaluate(batch, WANT)
    close(judged.logp, logp, batch.mask, 1e-5)
    close(judged.entropy, entropy, batch.mask, 1e-5)


@pytest.mark.parametrize("name", ["gpt2", "gemma2", "mistral"])
def test_other_architectures_run_in_buckets(name):
    policy = make(config=others()[name])
    batch = batch_of([5, 3, 20, 1, 5, 4], [6, 2, 1, 8, 0, 3])
    judged = policy.evaluate(batch, WANT)
    logp, entropy, hidden = reference(policy, batch)
    # The other norms and the soft cap of attention work in float32 whatever the model's type.
    tolerance = 1e-10 if name == "gpt2" else 1e-5
    for one, two in ((judged.logp, logp), (judged.entropy, entropy), (judged.hidden, hidden)):
        close(one, two, batch.mask, tolerance)
    weight = torch.randn(batch.action.shape, dtype=torch.float64) * batch.mask
    ours, theirs = gradients(policy, (judged.logp * weight).sum()), gradients(policy, (logp * weight).sum())
    for parameter in ours:
        close(ours[parameter], theirs[parameter], tolerance=1e-10 if name == "gpt2" else 1e-3)


def test_the_distribution_is_the_one_that_logp_is_of():
    policy = make(temperature=0.5)
    batch = batch_of(*RAGGED)
    judged = policy.evaluate(batch, frozenset({"logp", "distribution"}))
    scores = torch.log_softmax(judged.distribution, -1).gather(-1, batch.action[..., None]).squeeze(-1)
    close(scores, judged.logp, batch.mask)


def test_nothing_is_computed_that_is_not_wanted():
    judged = make().evaluate(batch_of(*RAGGED), frozenset({"logp"}))
    assert [judged.has(name) for name in ("logp", "entropy", "value", "hidden", "distribution")] == [True] + [False] * 4


def test_inserted_tokens_are_seen_but_not_judged():
    policy = make()
    batch = batch_of(*RAGGED)
    mask = batch.mask.clone()
    mask[:, 1] = False
    judged = policy.evaluate(batch.replace(mask=mask), WANT)
    logp, _, _ = reference(policy, batch)
    close(judged.logp, logp, mask)
    assert not judged.logp[:, 1].any()


def test_what_stands_in_the_padding_does_not_matter():
    policy = make()
    batch = batch_of(*RAGGED)
    noisy = batch.action.where(batch.mask, 57)
    tokens = batch.observation["tokens"]
    inside = torch.arange(tokens.shape[1]) < batch.observation["length"][:, None]
    observation = batch.observation.replace(tokens=tokens.where(inside, 31))
    other = policy.evaluate(batch.replace(action=noisy, observation=observation), WANT)
    assert torch.equal(other.logp, policy.evaluate(batch, WANT).logp)


def test_rows_of_several_batches_can_be_joined():
    policy = make()
    one, two = batch_of([3, 5], [4, 2], seed=1), batch_of([9], [6], seed=2)
    joined = policy.evaluate(concatenate([one, two]), WANT).logp
    close(joined[:2, :4], policy.evaluate(one, WANT).logp)
    close(joined[2:, :6], policy.evaluate(two, WANT).logp)


def test_micro_batches_add_up_to_the_whole_gradient():
    policy = make()
    batch = batch_of(*GROUPED)
    whole = gradients(policy, policy.evaluate(batch, WANT).logp.sum())
    policy.zero_grad()
    for start in range(0, 6, 2):
        policy.evaluate(batch[start : start + 2], WANT).logp.sum().backward()
    for name, parameter in policy.named_parameters():
        close(parameter.grad, whole[name])


@pytest.mark.parametrize("config", [None, "gpt2"])
def test_checkpointing_changes_no_gradient(config):
    shape = others()[config] if config else None
    plain, thrifty = make(config=shape), make(config=shape, checkpointing=True)
    batch = batch_of(*GROUPED)
    one = gradients(plain.train(), plain.evaluate(batch, WANT).logp.sum())
    two = gradients(thrifty.train(), thrifty.evaluate(batch, WANT).logp.sum())
    for name in one:
        close(one[name], two[name])


@pytest.mark.slow
@pytest.mark.parametrize("sharing", [False, True])
def test_fused_kernels_change_no_gradient(sharing):
    plain, fused = make("qwen3", prefix_sharing=sharing), make("qwen3", prefix_sharing=sharing, fused=True)
    batch = batch_of(*GROUPED)
    one, two = plain.evaluate(batch, WANT), fused.evaluate(batch, WANT)
    close(one.logp, two.logp)
    first, second = gradients(plain, (one.logp + one.entropy).sum()), gradients(fused, (two.logp + two.entropy).sum())
    for name in first:
        close(first[name], second[name], tolerance=1e-9)


def test_a_batch_without_decisions_is_judged():
    policy = make()
    batch = batch_of(*RAGGED)
    judged = policy.evaluate(batch.replace(mask=torch.zeros_like(batch.mask)), WANT)
    assert judged.logp.shape == batch.action.shape
    assert not judged.logp.any()


# sharing prefixes -------------------------------------------------------------------------------------------------------


def test_a_suffix_does_not_see_another():
    policy = make(prefix_sharing=True)
    batch = batch_of([6] * 4, [5, 7, 4, 6], [0, 0, 0, 0])
    action = batch.action.clone()
    action[1, 2] = (action[1, 2] + 1) % 90 + 3
    before, after = (policy.evaluate(b, WANT).logp for b in (batch, batch.replace(action=action)))
    assert torch.equal(before[[0, 2, 3]], after[[0, 2, 3]])
    assert not torch.equal(before[1], after[1])


def test_a_suffix_gives_another_no_gradient():
    policy = make(prefix_sharing=True)
    tokens = torch.randperm(90)[:14] + 3
    batch = batch_of([4, 4], [5, 5], [0, 0]).replace(action=tokens[4:14].view(2, 5))
    grads = gradients(policy, policy.evaluate(batch, frozenset({"hidden"})).hidden[0].sum())
    rows = grads["model.model.embed_tokens.weight"]
    assert not rows[batch.action[1]].any()
    assert rows[batch.action[0, :4]].abs().sum(-1).min() > 0


def test_what_is_computed_is_the_prefix_once():
    batch = batch_of([50] * 8, [10] * 8, [0] * 4 + [1] * 4)
    layout = inputs(batch, batch.mask)
    assert len(pack(layout, True).tokens) == len(pack(layout, "auto").tokens) == 2 * 50 + 8 * 9
    assert len(pack(layout, False).tokens) == 8 * 59
    # Shuffled rows share just as well.
    shuffled = batch.select(torch.tensor([3, 7, 0, 5, 1, 6, 2, 4]))
    assert len(pack(inputs(shuffled, shuffled.mask), True).tokens) == 172


def test_auto_shares_where_it_pays():
    short = batch_of([3] * 4, [40] * 4, [0] * 4)
    assert len(pack(inputs(short, short.mask), "auto").tokens) == 4 * 42
    alone = batch_of([30, 31], [5, 5])
    assert len(pack(inputs(alone, alone.mask), True).tokens) == 69


def test_a_group_of_one_is_the_plain_forward():
    policy = make(prefix_sharing=True)
    batch = batch_of([7], [5])
    close(policy.evaluate(batch, WANT).logp, reference(policy, batch)[0], batch.mask)


def test_prompts_that_begin_alike_are_not_the_same():
    policy = make(prefix_sharing=True)
    batch = batch_of([6, 6, 6], [4, 4, 4], [0, 0, 0])
    batch = batch.replace(observation=batch.observation.replace(length=torch.tensor([6, 4, 6])))
    close(policy.evaluate(batch, WANT).logp, reference(policy, batch)[0], batch.mask)


# critics ----------------------------------------------------------------------------------------------------------------


def test_values_follow_the_next_decision_of_the_policy():
    policy = make()
    with pytest.raises(UserError, match="add_value_head"):
        policy.evaluate(batch_of(*RAGGED), frozenset({"value"}))
    policy.add_value_head()
    torch.nn.init.normal_(policy.value_head.weight)
    batch = batch_of([4, 4], [5, 6])  # row 0 is terminated, row 1 truncated
    mask = batch.mask.clone()
    mask[:, 2] = False  # an inserted token
    batch = batch.replace(mask=mask)
    value, following = policy.values(batch)
    judged = policy.evaluate(batch, frozenset({"value"})).value
    close(value, judged.detach(), tolerance=1e-6)
    row = value[0]
    close(following[0, :5], torch.stack([row[1], row[3], row[0] * 0, row[4], row[0] * 0]), tolerance=1e-7)
    # A row that was cut does not go on, and has been judged: nothing is to come.
    close(following[1], torch.stack([value[1, 1], value[1, 3], row[0] * 0, value[1, 4], value[1, 5], row[0] * 0]))
    assert [p.shape for p in policy.critic_parameters()] == [(1, 32), (1,)]


# copies and files -------------------------------------------------------------------------------------------------------


def test_a_frozen_policy_stays_as_it_was():
    policy = make()
    policy.add_value_head()
    batch = batch_of(*RAGGED)
    before = policy.evaluate(batch, WANT).logp.detach()
    frozen = policy.frozen()
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.1)
    assert torch.equal(frozen.evaluate(batch, WANT).logp, before)
    assert not any(p.requires_grad for p in frozen.parameters())
    assert frozen.value_head is None
    assert not torch.equal(policy.evaluate(batch, WANT).logp, before)


def test_tied_weights_are_saved_once_and_stay_tied(tmp_path):
    policy, other = make(), make()
    policy.add_value_head()
    other.add_value_head()
    state = policy.state_dict()
    assert sum("lm_head" in name or "embed_tokens" in name for name in state) == 1
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(torch.randn_like(parameter))
    save_tensors(policy.state_dict(), tmp_path / "p.safetensors")
    other.load_state_dict(load_tensors(tmp_path / "p.safetensors"))
    batch = batch_of(*RAGGED)
    assert torch.equal(other.evaluate(batch, WANT).logp, policy.evaluate(batch, WANT).logp)
    assert other.model.lm_head.weight is other.model.model.embed_tokens.weight
    with pytest.raises(UserError, match="another policy"):
        other.load_state_dict({})


def test_saved_and_loaded_policies_agree(tmp_path):
    policy = make(dtype=torch.float32)
    policy.save(tmp_path / "m")
    policy.save(tmp_path / "m")  # replaces what is there
    other = LanguagePolicy.load(tmp_path / "m", temperature=1.0)
    batch = batch_of(*RAGGED)
    assert torch.equal(other.evaluate(batch, WANT).logp, policy.evaluate(batch, WANT).logp)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m"]
    assert "_attn_implementation" not in json.loads((tmp_path / "m" / "config.json").read_text())
    narrow = LanguagePolicy.load(tmp_path / "m", dtype="bfloat16")
    assert {p.dtype for p in narrow.parameters()} == {torch.bfloat16}
    close(narrow.evaluate(batch, WANT).logp, policy.evaluate(batch, WANT).logp, batch.mask, 0.5)


def test_autocast_is_near_and_gives_gradients_in_the_parameters_type():
    policy = make(dtype=torch.float32)
    batch = batch_of(*GROUPED)
    exact = policy.evaluate(batch, WANT)
    wide = gradients(policy, exact.logp.sum())
    policy.autocast = torch.bfloat16
    near = policy.evaluate(batch, WANT)
    close(near.logp, exact.logp, batch.mask, 0.5)
    narrow = gradients(policy, near.logp.sum())
    for name in wide:
        assert narrow[name].dtype == torch.float32
        assert torch.nn.functional.cosine_similarity(narrow[name].flatten(), wide[name].flatten(), dim=0) > 0.98


def test_dropout_is_off():
    config = others()["gpt2"]
    assert config.attn_pdrop > 0
    policy = make(config=config).train()
    batch = batch_of(*RAGGED)
    assert torch.equal(policy.evaluate(batch, WANT).logp, policy.evaluate(batch, WANT).logp)


@pytest.mark.parametrize(
    ("prompt", "template", "match"),
    [
        ("<eos>", "", "ends in the end token '<eos>'.*add_eos_token"),
        ("2+2=<eos> ", "", "ends in the end token"),
        ([{"role": "user", "content": "hi"}], "{{ messages[0]['content'] + eos_token }}", "begin the assistant's turn"),
        ("<user><user>hi", "", "two start tokens '<user>'.*chat messages"),
    ],
)
def test_prompts_that_begin_or_end_wrongly_are_warned_of_once(prompt, template, match, monkeypatch):
    policy = make()
    policy.tokenizer.bos_token = "<user>"
    if template:
        monkeypatch.setattr(policy.tokenizer, "chat_template", template)
    with pytest.warns(UserWarning, match=match) as seen:
        [policy.encode(prompt) for _ in range(2)]
    assert len(seen) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make().encode("<user>hi<eos>yes")
        make().encode([{"role": "user", "content": "hi"}])


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"temperature": 0.0}, "temperature"),
        ({"prefix_sharing": "yes"}, "prefix_sharing"),
        ({"autocast": "int8"}, "dtype"),
    ],
)
def test_bad_settings_are_named(settings, match):
    with pytest.raises(UserError, match=match):
        make(**settings)


def test_deepcopy_and_pickling_of_plans_is_not_needed():
    policy = make()
    twin = copy.deepcopy(policy)
    batch = batch_of(*RAGGED)
    assert torch.equal(twin.evaluate(batch, WANT).logp, policy.evaluate(batch, WANT).logp)


def test_every_cut_of_rows_gives_the_same_values():
    policy = make()
    batch = batch_of(*GROUPED)
    whole = policy.evaluate(batch, WANT).logp
    for rows in itertools.combinations(range(6), 2):
        part = policy.evaluate(batch.select(torch.tensor(rows)), WANT).logp
        close(part, whole[list(rows)])

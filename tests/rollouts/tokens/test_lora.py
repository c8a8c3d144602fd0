"""LoRA adapters of peft: the wrapped maps are called, and switching the adapter off is seen."""

import pytest
import torch

from tests.rollouts.tokens.tiny import agrees, make
from vantage.rollouts.tokens import Sampling, TokenEngine

PREFIXES = [[3, 4, 5], list(range(8, 40))]


@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], ["gate_proj", "down_proj", "lm_head"]])
def test_the_lean_path_runs_adapters(targets):
    peft = pytest.importorskip("peft")
    base = make("Qwen3")
    model = peft.get_peft_model(
        base, peft.LoraConfig(r=4, target_modules=targets, init_lora_weights=False, lora_dropout=0.5)
    )
    engine = TokenEngine(model, backend="lean")
    sampling = Sampling(max_new_tokens=10)
    model.train()
    found = engine.generate(PREFIXES, 3, sampling, seed=1)
    assert model.training
    model.eval()
    agrees(model, found, PREFIXES)
    with model.disable_adapter():
        plain = engine.generate(PREFIXES, 3, sampling, seed=1)
        agrees(model, plain, PREFIXES)
    assert not torch.allclose(plain.logp[:, 0], found.logp[:, 0])


def test_adapters_that_change_more_than_maps_take_the_generic_path():
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(make(), peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    assert TokenEngine(model).backend.name == "transformers"

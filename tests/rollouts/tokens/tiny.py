"""Tiny causal language models with random weights, and the plain forward to hold the engine against."""

import torch

PAD, EOS, VOCABULARY = 2, 1, 97


def make(kind="Llama", seed=0, scale=0.3, **settings):
    """A model whose distributions are far from uniform; norms and biases are random too."""
    import transformers

    chosen = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "bos_token_id": 0,
        "eos_token_id": EOS,
        "pad_token_id": PAD,
        **settings,
    }
    torch.manual_seed(seed)
    config = getattr(transformers, f"{kind}Config")(**chosen)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, scale) if parameter.dim() > 1 else parameter.uniform_(0.5, 1.5)
    return model


def judged(model, prefix, completion, temperature=1.0):
    """Log-probabilities [T, V] of each token of a completion by one plain forward over the whole sequence."""
    ids = torch.tensor([[*prefix, *completion]])
    with torch.no_grad():
        logits = model(ids).logits.float()[0, len(prefix) - 1 : -1]
    return (logits / temperature).log_softmax(-1)


def agrees(model, found, prefixes, temperature=1.0, tolerance=1e-4):
    """What was recorded for the drawn tokens equals the plain forward; forced and padded places hold nothing."""
    assert len(found) == len(found.tokens) == len(found.length)
    for row in range(len(found)):
        size, prefix = int(found.length[row]), prefixes[int(found.prefix[row])]
        tokens = found.tokens[row, :size]
        assert (found.tokens[row, size:] == PAD).all()
        if not size:
            continue
        drawn = ~found.forced[row, :size]
        logps = judged(model, prefix, tokens.tolist(), temperature)
        logp = logps.gather(1, tokens[:, None]).squeeze(1)
        raw = judged(model, prefix, tokens.tolist()).gather(1, tokens[:, None]).squeeze(1)
        entropy = -(logps.exp() * logps).sum(-1)
        for recorded, expected in ((found.logp, logp), (found.logp_raw, raw), (found.entropy, entropy)):
            torch.testing.assert_close(recorded[row, :size][drawn], expected[drawn], atol=tolerance, rtol=0)
            assert (recorded[row, :size][~drawn] == 0).all()
            assert (recorded[row, size:] == 0).all()


def same(a, b):
    """Two results hold the same tokens, ends and forced places, and log-probabilities to 1e-4."""
    assert torch.equal(a.tokens, b.tokens)
    assert torch.equal(a.length, b.length)
    assert torch.equal(a.finished, b.finished)
    assert torch.equal(a.forced, b.forced)
    torch.testing.assert_close(a.logp, b.logp, atol=1e-4, rtol=0)

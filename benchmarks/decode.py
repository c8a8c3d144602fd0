"""Tokens a second of the token engine beside `model.generate` of transformers, and the floor that the arithmetic sets.

    python benchmarks/decode.py [--shape a|b|c|d] [--threads 2] [--repeats 3] [--device cpu|cuda] [--dtype float32|bfloat16]

Both generate from the same module with the same settings; the engine also returns log-probabilities and entropies,
which `generate` does not. Runs alternate, and the best of the repeats counts. The floor is the floating-point operations
of the matrix products and attention over the rate that a product of the model's own shapes reaches, measured in the
same run: what would remain if everything but the products cost nothing. Shape d is for a GPU.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers import LlamaConfig, LlamaForCausalLM, StoppingCriteria, StoppingCriteriaList

from vantage.rollouts.tokens import Sampling, TokenEngine


@dataclass(frozen=True)
class Shape:
    name: str
    hidden: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    prompts: int
    prompt: tuple[int, int]  # shortest, longest
    n: int
    new: tuple[int, int]

    @property
    def kv(self) -> int:
        return self.hidden * self.kv_heads // self.heads

    @property
    def weights(self) -> int:
        """Parameters of the layers' products."""
        return self.layers * self.hidden * (2 * self.hidden + 2 * self.kv + 3 * self.inner)


SHAPES = {
    "a": Shape("0.8 M Llama, 8 x 8 rows, 32 new tokens", 128, 320, 4, 4, 4, 512, 8, (12, 24), 8, (32, 32)),
    "b": Shape("0.8 M Llama, 8 x 8 rows, 4 to 128 new", 128, 320, 4, 4, 4, 512, 8, (12, 24), 8, (4, 128)),
    "c": Shape(
        "25 M Llama, 4 x 16 rows, prompts of 512, 64 new", 512, 1376, 8, 8, 8, 4096, 4, (512, 512), 16, (64, 64)
    ),
    "d": Shape("0.5 B Llama, 16 x 16 rows, 64 to 512 new", 896, 4864, 24, 14, 2, 151936, 16, (200, 400), 16, (64, 512)),
}


class PerRow(StoppingCriteria):
    """Ends each row at its own length."""

    def __init__(self, start: int, limits: torch.Tensor) -> None:
        self.start, self.limits = start, limits

    def __call__(self, input_ids: torch.Tensor, scores: object, **_: object) -> torch.Tensor:
        return input_ids.shape[1] - self.start >= self.limits


def model_of(shape: Shape, device: str = "cpu", dtype: torch.dtype = torch.float32) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        eos_token_id=shape.vocabulary - 1,
        pad_token_id=0,
        bos_token_id=1,
    )
    return LlamaForCausalLM(config).eval().to(device, dtype)


def finished(device: str) -> float:
    """The time, once the device has done what it was given."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def matmul_rate(m: int, k: int, n: int, like: torch.Tensor, seconds: float = 0.3) -> float:
    """Floating-point operations a second of an [m, k] x [k, n] product: the best of bursts."""
    a, b = (torch.randn(rows, k, device=like.device, dtype=like.dtype) for rows in (m, n))
    least, begin = float("inf"), time.perf_counter()
    while time.perf_counter() - begin < seconds:
        start = finished(like.device.type)
        for _ in range(10):
            torch.nn.functional.linear(a, b)
        least = min(least, finished(like.device.type) - start)
    return 2 * m * k * n * 10 / least


def floor(shape: Shape, lengths: torch.Tensor, prompts: list[list[int]], like: torch.Tensor) -> float:
    """Seconds that the products and the attention would take at the measured rates, each prompt computed once."""
    hidden, inner, rows = shape.hidden, shape.inner, len(lengths)
    tokens, prompt_tokens = int(lengths.sum()), sum(map(len, prompts))
    small, large = matmul_rate(rows, hidden, 2 * inner, like), matmul_rate(512, hidden, 2 * inner, like)
    decode = 2 * tokens * (shape.weights + hidden * shape.vocabulary)
    contexts = sum(int(n) * len(prompts[i // shape.n]) + int(n) ** 2 // 2 for i, n in enumerate(lengths))
    decode += shape.layers * 4 * hidden * contexts
    prefill = 2 * prompt_tokens * shape.weights + shape.layers * 2 * hidden * sum(len(p) ** 2 for p in prompts)
    print(f"  product rate: {small / 1e9:.0f} GFLOP/s at {rows} rows, {large / 1e9:.0f} at 512")
    return decode / small + prefill / large


def best(runs: list[Callable[[], object]], repeats: int, device: str) -> list[float]:
    times = [float("inf")] * len(runs)
    for _ in range(repeats):
        for index, run in enumerate(runs):
            start = finished(device)
            run()
            times[index] = min(times[index], finished(device) - start)
    return times


def measure(shape: Shape, repeats: int, peers: bool, device: str, dtype: torch.dtype) -> None:
    print(shape.name)
    model = model_of(shape, device, dtype)
    generator = torch.Generator().manual_seed(1)

    def between(low: int, high: int, count: int) -> torch.Tensor:
        return torch.randint(low, high + 1, (count,), generator=generator)

    prompts = [
        torch.randint(3, shape.vocabulary - 1, (int(size),), generator=generator).tolist()
        for size in between(*shape.prompt, shape.prompts)
    ]
    limits = between(*shape.new, shape.prompts * shape.n)
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(p)) + p for p in prompts]).to(device)
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts]).to(device)
    ends = limits.to(device)
    engine = TokenEngine(model, eos_token_ids=(), pad_token_id=0)
    sampling = Sampling(max_new_tokens=int(limits.max()))
    model.generation_config.eos_token_id = None

    def ours() -> None:
        found = engine.generate(prompts, shape.n, sampling, max_new_tokens=limits.tolist())
        assert torch.equal(found.length.cpu(), limits)

    @torch.inference_mode()
    def theirs() -> None:
        model.generate(
            ids,
            attention_mask=mask,
            do_sample=True,
            top_k=0,
            top_p=1.0,
            num_return_sequences=shape.n,
            max_new_tokens=int(limits.max()),
            stopping_criteria=StoppingCriteriaList([PerRow(longest, ends)]),
            pad_token_id=0,
        )

    tokens = int(limits.sum())
    ours()
    runs = [ours, theirs] if peers else [ours]
    times = best(runs, repeats, device)
    least = floor(shape, limits, prompts, model.lm_head.weight)
    for name, seconds in zip(["engine", "transformers"], times):
        print(f"  {name:13s} {seconds:8.3f} s  {tokens / seconds:9.0f} tokens/s  {seconds / least:5.2f} x the floor")
    print(f"  floor         {least:8.3f} s")
    if peers:
        print(f"  transformers / engine: {times[1] / times[0]:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=[*SHAPES, "all"], default="all", help="all: those for the CPU")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--alone", action="store_true", help="leave transformers out")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for key in "abc" if options.shape == "all" else options.shape:
        measure(SHAPES[key], options.repeats, not options.alone, options.device, getattr(torch, options.dtype))


if __name__ == "__main__":
    main()

"""Decode steps of small float32 models on the CPU in C (`decode.c`), compiled at first use, where a compiler is installed.

Without one the same steps run operation by operation, about two times slower for models of a few million parameters, with
the same samples up to rounding. `VANTAGE_NATIVE=0` disables the compiled path.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from ctypes import POINTER, c_float, c_int64, c_void_p
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vantage.core.checkpoint import write_atomically
from vantage.core.errors import TrainingError
from vantage.rollouts.tokens.sampling import Draw, Sampling

if TYPE_CHECKING:
    from vantage.rollouts.tokens.cache import Storage
    from vantage.rollouts.tokens.weights import Weights

SOURCE = Path(__file__).with_name("decode.c")
DIGEST = "74ec5f9d102748b751313321a5ea2d9ece577de1a7adefca7ed6ba2eed28369e"
"""SHA-256 of `decode.c`, in a Python source because fingerprints of results read these alone (`study/fingerprint.py`);
a test checks it."""
FLAGS = ("-O3", "-march=native", "-std=gnu11", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-shared", "-pthread")

_log = logging.getLogger(__name__)


class _Layer(ctypes.Structure):
    _fields_ = [
        *((name, c_void_p) for name in ("qkv", "qkv_bias", "head_norm", "out", "out_bias")),
        *((name, c_void_p) for name in ("gate_up", "gate_up_bias", "down", "down_bias", "kv")),
        *((name, c_float) for name in ("before_eps", "between_eps", "head_eps")),
    ]


class _Shared(ctypes.Structure):
    _fields_ = [("kv", POINTER(c_void_p)), ("lengths", c_void_p), ("groups", c_int64), ("width", c_int64)]


class _Call(ctypes.Structure):
    _fields_ = [
        *((name, c_int64) for name in ("rows", "steps", "layers", "hidden", "inner", "heads", "kv_heads", "dim", "vocabulary")),
        ("layer", POINTER(_Layer)),
        *((name, c_void_p) for name in ("embedding", "norm", "head", "rope", "head_bias")),
        ("norm_eps", c_float),
        *((name, c_int64) for name in ("capacity", "columns", "low", "end")),
        *((name, c_void_p) for name in ("start", "bias")),
        ("shared", POINTER(_Shared)),
        *((name, c_void_p) for name in ("member", "position", "pending", "uniform")),
        ("temperature", c_float),
        ("stops", c_void_p),
        *((name, c_int64) for name in ("stop_count", "enough")),
        ("ended", c_void_p),
        ("threads", c_int64),
        *((name, c_void_p) for name in ("token", "logp", "logp_raw", "entropy", "logits")),
    ]  # fmt: skip


# the library ----------------------------------------------------------------------------------------------------------


@functools.cache
def library() -> Any:
    """Return the compiled library, or None where it is disabled or cannot be compiled."""
    if os.environ.get("VANTAGE_NATIVE", "1") == "0":
        return None
    try:
        found = ctypes.CDLL(str(compiled()))
    except (OSError, subprocess.SubprocessError) as error:
        _log.info("the token engine runs operation by operation: %s", error)
        return None
    found.panel.restype = found.decode.restype = c_int64
    found.decode.argtypes = [POINTER(_Call)]
    return found


def compiled() -> Path:
    """Compile `decode.c` for this processor, unless that was done before, and return the library's path.

    Raises:
        OSError: there is no compiler, or no writable folder.
        subprocess.SubprocessError: the compilation failed.
    """
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise FileNotFoundError("there is no C compiler (cc, gcc or clang) on the PATH, and CC is not set")
    version = subprocess.run([compiler, "--version"], capture_output=True, check=True, timeout=60).stdout
    decided = b"\0".join((SOURCE.read_bytes(), version, " ".join(FLAGS).encode(), _processor().encode()))
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    target = Path(base) / "vantage" / "native" / f"decode-{hashlib.sha256(decided).hexdigest()[:24]}.so"
    written = target.with_suffix(".sha256")
    with contextlib.suppress(OSError):
        # A file that was cut short or altered would end the process without a word when it is loaded.
        if hashlib.sha256(target.read_bytes()).hexdigest() == written.read_text(encoding="utf-8", errors="replace"):
            return target
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        made = Path(folder) / target.name
        command = [compiler, *FLAGS, str(SOURCE), "-o", str(made), "-lm"]
        subprocess.run(command, capture_output=True, check=True, timeout=300)
        write_atomically(target, made.read_bytes())  # also when another process compiles it
        write_atomically(written, hashlib.sha256(made.read_bytes()).hexdigest())
    return target


def _processor() -> str:
    """Return a name of the processor's type: code for one may not run on another that shares the cache folder."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    return "\n".join(sorted({line for line in lines if line.startswith(("flags", "model name", "Features"))}))


# the weights ----------------------------------------------------------------------------------------------------------


def panels(weight: Tensor, panel: int) -> Tensor:
    """Return a matrix [out, in] as [out / panel, in, panel], with zeros after the last output."""
    padded = F.pad(weight, (0, 0, 0, -len(weight) % panel))
    return padded.unflatten(0, (-1, panel)).transpose(1, 2).contiguous()


def _padded(bias: Tensor | None, panel: int) -> Tensor | None:
    return None if bias is None else F.pad(bias, (0, -len(bias) % panel))


class Native:
    """Folded weights of a model as `decode.c` reads them, for the lifetime of a `Weights`."""

    def __init__(self, weights: Weights, found: Any) -> None:
        self.weights, self.library = weights, found
        size = int(found.panel())
        self._held: list[Tensor] = []
        hidden = weights.embedding.weight.shape[1]
        self.layers = (_Layer * len(weights.layers))()
        for layer, mine in zip(weights.layers, self.layers):
            mine.qkv, mine.qkv_bias = self._keep(panels(layer.qkv, size)), self._keep(_padded(layer.bias, size))
            mine.head_norm = self._keep(layer.norm)
            mine.out, mine.out_bias = self._keep(panels(layer.o.t(), size)), self._keep(_padded(layer.o_bias, size))
            mine.gate_up = self._keep(panels(layer.gate_up, size))
            mine.gate_up_bias = self._keep(_padded(layer.gate_bias, size))
            mine.down, mine.down_bias = (
                self._keep(panels(layer.down.t(), size)),
                self._keep(_padded(layer.down_bias, size)),
            )
            mine.before_eps, mine.between_eps = layer.eps
            mine.head_eps = layer.norm_eps if layer.norm is not None else 0.0
        first = weights.layers[0]
        self.sizes = {
            "layers": len(weights.layers),
            "hidden": hidden,
            "inner": first.inner,
            "heads": first.queries,
            "kv_heads": first.kv,
            "dim": first.dim,
            "vocabulary": weights.head.out_features,
            "embedding": self._keep(weights.embedding.weight.detach()),
            "norm": self._keep(weights.norm.weight.detach() * hidden**0.5),
            "head": self._keep(panels(weights.head.weight.detach(), size)),
            "head_bias": self._keep(_padded(weights.head.bias, size)),
            "norm_eps": hidden * weights.norm.eps,
        }

    def _keep(self, x: Tensor | None) -> int | None:
        """Return the address of a tensor, to which this object keeps a reference."""
        if x is None:
            return None
        self._held.append(x := x.detach().contiguous())
        return x.data_ptr()

    def _call(self, cache: Storage, tokens: Tensor, steps: int) -> tuple[_Call, list[Any]]:
        """Return the arguments of `decode.c` for a cache with room for `steps` columns, and the objects that it refers to."""
        for mine, kv in zip(self.layers, cache.kv):
            assert kv.is_contiguous()
            mine.kv = kv.data_ptr()
        rope = torch.view_as_real(self.weights.table(cache.farthest + steps + 1)[0]).contiguous()
        start, tokens, position = cache.start.contiguous(), tokens.contiguous(), cache.position.contiguous()
        kept: list[Any] = [rope, start, tokens, position, cache.bias]
        call = _Call(
            rows=cache.rows,
            steps=steps,
            layer=self.layers,
            rope=rope.data_ptr(),
            capacity=cache.kv[0].shape[1],
            columns=cache.kv[0].shape[3],
            low=cache.low,
            end=cache.end,
            start=start.data_ptr(),
            bias=None if cache.bias is None else cache.bias.data_ptr(),
            position=position.data_ptr(),
            pending=tokens.data_ptr(),
            temperature=1.0,
            threads=torch.get_num_threads(),
            **self.sizes,
        )
        if cache.blocks:
            member = cache.member.contiguous()
            blocks = (_Shared * len(cache.blocks))()
            for block, mine in zip(cache.blocks, blocks):
                held = [x.contiguous() for x in block.kv]
                pointers = (c_void_p * len(held))(*(x.data_ptr() for x in held))
                lengths = block.lengths.contiguous()
                mine.kv, mine.lengths = pointers, lengths.data_ptr()
                mine.groups, mine.width = held[0].shape[1], held[0].shape[3]
                kept += [held, pointers, lengths]
            call.shared, call.member = blocks, member.data_ptr()
            kept += [blocks, member]
        return call, kept

    def _run(self, cache: Storage, call: _Call) -> int:
        done = int(self.library.decode(ctypes.byref(call)))
        if done == -2:
            raise MemoryError(f"decoding {cache.rows} rows: there is no memory for a step")
        if done < 0:
            raise TrainingError("decoding: the model's logits are not finite; its weights have probably diverged")
        cache.position = cache.position + done
        cache.end += done
        cache.farthest += done
        cache.ahead += done
        return done

    def logits(self, cache: Storage, tokens: Tensor) -> Tensor:
        """Feed one token to each row [n] and return the logits of the next [n, V]."""
        cache.reserve(cache.end + 1)
        call, kept = self._call(cache, tokens, 1)
        found = torch.empty(cache.rows, self.sizes["vocabulary"])
        call.logits = found.data_ptr()
        self._run(cache, call)
        del kept
        return found

    def decode(
        self,
        cache: Storage,
        pending: Tensor,
        stream: Tensor | None,
        steps: int,
        sampling: Sampling,
        stop: Tensor,
        ended: Tensor,
        enough: int,
    ) -> Draw:
        """Decode up to `steps` tokens per row [n, k] from the pending ones [n], with `sampling` without truncation.

        Args:
            cache: the rows.
            pending: the last token of each row.
            stream: uniform numbers [steps, n] of double precision; None for the most probable token.
            steps: largest number of tokens.
            sampling: settings of sampling.
            stop: [S] tokens that end a row.
            ended: [n] bool, rows that have already ended.
            enough: end early when this many rows have ended, where there are stop tokens.

        Raises:
            TrainingError: a logit is not finite.
        """
        cache.reserve(cache.end + steps)
        call, kept = self._call(cache, pending, steps)
        shape = cache.rows, steps
        token = torch.empty(shape, dtype=torch.int64)
        logp, entropy = torch.empty(shape), torch.empty(shape)
        raw = torch.empty(shape) if sampling.temperature != 1 else logp
        over = ended.to(torch.uint8, copy=True)
        call.temperature = sampling.temperature
        call.uniform = None if stream is None else (stream := stream.contiguous()).data_ptr()
        call.stops, call.stop_count, call.enough, call.ended = stop.data_ptr(), len(stop), enough, over.data_ptr()
        call.token, call.logp, call.entropy = token.data_ptr(), logp.data_ptr(), entropy.data_ptr()
        call.logp_raw = raw.data_ptr() if raw is not logp else None
        done = self._run(cache, call)
        del kept
        if done < steps:
            token, logp, entropy = token[:, :done], logp[:, :done], entropy[:, :done]
            raw = raw[:, :done] if sampling.temperature != 1 else logp
        return Draw(token, logp, torch.zeros_like(logp) if sampling.greedy else logp, raw, entropy)


def native(weights: Weights) -> Native | None:
    """Return the compiled path of these weights; None where it does not support them."""
    plain = type(weights.embedding) is nn.Embedding and type(weights.head) is nn.Linear
    if not (weights.folded and plain and weights.device.type == "cpu" and weights.dtype == torch.float32):
        return None
    found = library()
    return None if found is None else Native(weights, found)

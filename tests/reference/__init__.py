"""Numbers of the authors' own functions, and their settings, one JSON a page: what the pages are compared with.

`NAME.json` of a page:

    {
      "sources": {"authors": {"repository": "owner/name", "commit": "01787b0", "script": "recipe/dcpo/run_dcpo.sh"}},
      "defaults": {
        "limit": {"value": 10.0, "at": "authors recipe/dcpo/run_base.sh:85"},
        "lr": {"value": 1e-6, "theirs": 5e-7, "at": "authors config.yaml:51", "why": "the paper's"},
        "micro_batch": {"value": null, "why": "memory alone"}
      },
      "cases": [
        {"name": "ragged", "at": "authors verl/trainer/ppo/core_algos.py:978 compute_policy_loss_dcpo",
         "inputs": {"logp": [[-0.1, -2.0]]}, "settings": {"eps_low": 0.2}, "outputs": {"loss": 0.31, "grad": [[0.0, 0.2]]}}
      ],
      "without_cases": "one line why there are no cases, only where there are none"
    }

`defaults` names every setting of the page: `value` is the page's default; `theirs` their value where it differs, `why` the reason,
which the page's docstring states too; `at` the source, file and line. NaN, Infinity and -Infinity are written as Python's json
does. The numbers were computed by running the named function of the named commit, outside this project; none of that code is
here. `cut` is what such a run needs where a file cannot be imported as a whole.
"""

from __future__ import annotations

import ast
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

HERE = Path(__file__).parent


def read(name: str) -> dict[str, Any]:
    """Return the JSON of a page."""
    found: dict[str, Any] = json.loads((HERE / f"{name}.json").read_text(encoding="utf-8"))
    return found


@dataclass(frozen=True)
class Case:
    """Inputs, settings and outputs of one call of a function of theirs.

    Attributes:
        name: of the case.
        at: source, file, line and function.
        inputs: as the JSON has them; `tensor` makes a tensor.
        settings: of their call.
        outputs: what it returned.
    """

    name: str
    at: str
    inputs: dict[str, Any]
    settings: dict[str, Any]
    outputs: dict[str, Any]

    def __str__(self) -> str:
        return self.name

    def tensor(self, name: str, dtype: torch.dtype = torch.float64) -> Tensor:
        """Return an input as a tensor; numbers become `dtype`, true and false stay so."""
        made = torch.tensor(self.inputs[name])
        # Read once more rather than cast: a list of numbers is float32 by default, which loses half of their digits.
        return made if made.dtype == torch.bool else torch.tensor(self.inputs[name], dtype=dtype)

    def check(self, name: str, found: Tensor | float, tolerance: float = 1e-5) -> None:
        """Compare what was computed with the output of this name: relative and absolute tolerance, equal shapes."""
        expected = torch.tensor(self.outputs[name], dtype=torch.float64)
        got = torch.as_tensor(found).detach().double()
        torch.testing.assert_close(
            got, expected, rtol=tolerance, atol=tolerance, equal_nan=True, msg=lambda text: f"{self.at}, {name}: {text}"
        )


def cases(name: str, prefix: str = "") -> Any:
    """Return a decorator that runs a test on each case of a page whose name begins with `prefix`, as its argument `case`."""
    fields = ("name", "at", "inputs", "settings", "outputs")
    found = [
        Case(**{f: one.get(f, {}) for f in fields}) for one in read(name)["cases"] if one["name"].startswith(prefix)
    ]
    assert found, f"{name}.json has no case whose name begins with {prefix!r}"
    return pytest.mark.parametrize("case", found, ids=str)


def cut(path: Path, *names: str, **given: Any) -> dict[str, Any]:
    """Return functions, classes and constants of a source file that cannot be imported as a whole.

    Args:
        path: of the file.
        names: of what is taken, in the module or in a class (`Trainer.loss` is taken as a plain function).
        **given: what their bodies refer to: modules, other functions.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    space: dict[str, Any] = dict(given)
    for name in names:
        node: Any = tree
        for part in name.split("."):
            node = next(one for one in node.body if part in _names(one))
        if hasattr(node, "decorator_list"):
            node.decorator_list = []
        exec(compile(ast.Module([node], type_ignores=[]), str(path), "exec"), space)
    return {name: space[name.rpartition(".")[2]] for name in names}


def _names(node: ast.stmt) -> list[str]:
    """Return what a statement defines."""
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return [getattr(node, "name", ""), *(one.id for one in targets if isinstance(one, ast.Name))]


def keep(name: str, case: dict[str, Any]) -> None:
    """Write a case into the JSON of a page, in place of one of the same name; tensors are written as lists."""
    path = HERE / f"{name}.json"
    held = read(name) if path.exists() else {"sources": {}, "defaults": {}, "cases": []}
    held["cases"] = [one for one in held.get("cases", []) if one["name"] != case["name"]] + [_plain(case)]
    write(name, held)


def write(name: str, held: dict[str, Any]) -> None:
    """Write the JSON of a page: one line a default, a source and an input."""
    parts = []
    for key, value in held.items():
        if isinstance(value, dict):
            rows = ",\n".join(f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in value.items())
            parts.append(f'"{key}": {{\n{rows}\n }}' if rows else f'"{key}": {{}}')
        elif isinstance(value, list):
            each = [",\n   ".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in one.items()) for one in value]
            rows = ",\n".join(f"  {{{one}}}" for one in each)
            parts.append(f'"{key}": [\n{rows}\n ]' if rows else f'"{key}": []')
        else:
            parts.append(f'"{key}": {json.dumps(value)}')
    (HERE / f"{name}.json").write_text("{\n " + ",\n ".join(parts) + "\n}\n", encoding="utf-8")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    return round(value, 10) if isinstance(value, float) and abs(value) > 1e-3 else value

"""Equality of two sympy expressions: exact where both are exact, within a relative tolerance where one is a decimal.

math-verify's grader rounds decimals at the sixth place and drops differences below 1e-15, so that 2e-7 equals 1e-7 and 1/2^98
equals 1/2^99, and takes the right side of any equation for its value. Here numbers, expressions in the same letters, equations,
inequalities, sets, tuples, intervals and matrices are compared; all else is left to math-verify.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

DECIMAL = Fraction(1, 10**6)
"""Tolerance of decimals, times the reference where that is below 1: 0.333333 is 1/3, 0.333 is not."""
_DIGITS = 60
LARGEST = 1 << 17
"""Largest number of binary digits of a number that is written out."""


def equal(gold: Any, found: Any) -> bool | None:
    """Return whether the expression `found` equals the reference `gold`, None where this module does not decide it."""
    import sympy

    if isinstance(gold, str) or isinstance(found, str):
        return gold == found if isinstance(gold, str) and isinstance(found, str) and gold.strip() else None
    gold, found = _valued(gold, found)
    if gold is None or found is None:
        return False
    if _is_relation(gold) or _is_relation(found):
        return _equal_relations(gold, found) if _is_relation(gold) and _is_relation(found) else None
    if isinstance(gold, sympy.MatrixBase) and isinstance(found, sympy.MatrixBase):
        return gold.shape == found.shape and _all(gold.flat(), found.flat())
    if isinstance(gold, sympy.Interval) and isinstance(found, sympy.Interval):
        ends = (gold.left_open, gold.right_open) == (found.left_open, found.right_open)
        return ends and _all((gold.start, gold.end), (found.start, found.end))
    if isinstance(gold, sympy.Tuple) and isinstance(found, sympy.Tuple):
        return len(gold) == len(found) and _all(gold.args, found.args)
    if isinstance(gold, sympy.FiniteSet) and isinstance(found, sympy.FiniteSet):
        return _equal_sets(gold.args, found.args)
    if any(isinstance(each, (sympy.Set, sympy.Tuple, sympy.MatrixBase)) for each in (gold, found)):
        return None
    if not (isinstance(gold, sympy.Expr) and isinstance(found, sympy.Expr)):
        return None
    return equal_values(gold, found)


def _all(gold: Sequence[Any], found: Sequence[Any]) -> bool | None:
    return _both([equal(one, other) for one, other in zip(gold, found, strict=True)])


def _both(answers: Sequence[bool | None]) -> bool | None:
    return False if False in answers else None if None in answers else True


def _equal_sets(gold: Sequence[Any], found: Sequence[Any]) -> bool | None:
    """Return whether each member of either has its equal in the other."""
    if len(gold) != len(found):
        return False
    table = [[equal(one, other) for other in found] for one in gold]
    if any(None in row for row in table):
        return None
    return all(any(row) for row in table) and all(any(column) for column in zip(*table, strict=True))


# relations -------------------------------------------------------------------------------------------------------------


def _is_relation(expression: Any) -> bool:
    return bool(_relations(expression))


def _relations(expression: Any) -> tuple[Any, ...]:
    """Return the relations of a chain such as 1 < x < 3, a single relation as a chain of one, and () for anything else."""
    import sympy
    from sympy.core.relational import Relational

    if isinstance(expression, Relational):
        return (expression,)
    arguments = getattr(expression, "_unsorted_args", ()) if isinstance(expression, sympy.And) else ()
    return tuple(arguments) if arguments and all(isinstance(each, Relational) for each in arguments) else ()


def _equation(expression: Any) -> tuple[Any, Any] | None:
    """Return (left, right) of an equation, or the outermost sides of a chain a = b = c."""
    import sympy

    chain = _relations(expression)
    if not chain or not all(isinstance(each, sympy.Eq) for each in chain):
        return None
    return chain[0].lhs, chain[-1].rhs


def _valued(gold: Any, found: Any) -> tuple[Any, Any]:
    """Replace an equation by its value where the other expression is none; None for an equation that has no value."""
    mine, theirs = _equation(gold), _equation(found)
    if theirs and not _is_relation(gold):
        return gold, _value(*theirs)
    if mine and not _is_relation(found):
        return _value(*mine, asked=True), found
    return gold, found


def _value(left: Any, right: Any, asked: bool = False) -> Any:
    """Return the value that an equation gives, its right side; None where it describes its letters.

    "x = 5", "f(2) = 5", "m + n = 5", "2 + 3 = 5" give a value. "3x + 4y + 14 = 0" and "x + 3 = 7" do not have the values 0 and 7:
    no question asks for such a left side. "3x + 4y = 5" has the value 5, unless the equation itself was `asked` for.
    """
    import sympy
    from latex2sympy2_extended import is_expr_of_only_symbols

    if is_expr_of_only_symbols(left) or not isinstance(left, sympy.Expr) or not left.free_symbols:
        return right
    if not isinstance(right, sympy.Expr) or isinstance(left, sympy.core.function.AppliedUndef):
        return right
    if right.free_symbols:
        return right if equal_values(left, right) else None
    terms = sympy.Add.make_args(left)
    if any(not term.free_symbols for term in terms):
        return None
    plain = all(term.is_Symbol or (-term).is_Symbol for term in terms)
    return right if plain or (right != 0 and not asked) else None


def _equal_relations(gold: Any, found: Any) -> bool | None:
    mine, theirs = _equation(gold), _equation(found)
    if mine and theirs:
        if mine[0] == theirs[0]:
            return equal(mine[1], theirs[1])
        return _proportional(mine, theirs, False)
    gold_chain, found_chain = _relations(gold), _relations(found)
    if len(gold_chain) != len(found_chain) or (mine is None) != (theirs is None):
        return None
    pairs = [[_below(each) for each in chain] for chain in (gold_chain, found_chain)]
    if any(each is None for chain in pairs for each in chain):
        return None
    answers = []
    for one, other in zip(*pairs, strict=True):
        assert one is not None
        assert other is not None
        answers.append(one[2] == other[2] and _proportional(one[:2], other[:2], True))
    return _both(answers)


def _below(relation: Any) -> tuple[Any, Any, bool] | None:
    """Return an inequality as (smaller side, larger side, strict)."""
    import sympy

    if isinstance(relation, (sympy.StrictLessThan, sympy.LessThan)):
        return relation.lhs, relation.rhs, isinstance(relation, sympy.StrictLessThan)
    if isinstance(relation, (sympy.StrictGreaterThan, sympy.GreaterThan)):
        return relation.rhs, relation.lhs, isinstance(relation, sympy.StrictGreaterThan)
    return None


def _proportional(gold: tuple[Any, Any], found: tuple[Any, Any], ordered: bool) -> bool | None:
    """Return whether left - right of one relation is a constant times that of the other, above 0 where sides are ordered.

    None where it is not but they may have the same solutions.
    """
    import sympy

    if not all(isinstance(side, sympy.Expr) for side in (*gold, *found)):
        return None
    mine, theirs = gold[0] - gold[1], found[0] - found[1]
    if _names(mine) != _names(theirs):
        return False
    values = [(_at(mine, point), _at(theirs, point)) for point in range(3)]
    if any(one is None or other is None or not other for one, other in values):
        return None
    shares = [one / other for one, other in values]
    room = (
        sympy.Float("1e-6") if mine.atoms(sympy.Float) or theirs.atoms(sympy.Float) else sympy.Float("1e-30", _DIGITS)
    )
    if all(abs(share - shares[0]) <= room * abs(shares[0]) for share in shares):
        return bool(shares[0] != 0 and (not ordered or sympy.re(shares[0]) > 0))
    # The form of linear relations is unique up to a factor.
    return (
        False if all(each.is_polynomial() and sympy.Poly(each).total_degree() < 2 for each in (mine, theirs)) else None
    )


# values ----------------------------------------------------------------------------------------------------------------


def equal_values(gold: Any, found: Any) -> bool | None:
    """Return whether two numbers, or two expressions in the same letters, are equal; None where that cannot be decided.

    Letters are replaced by numbers of either sign at three points, and the values compared to 30 digits. A percentage equals both
    its number and a hundredth of it, unless both are percentages.
    """
    import sympy

    if gold == found:
        return True
    percent = [_percent(gold), _percent(found)]
    if (percent[0] is None) != (percent[1] is None):
        whole, part = (gold, percent[1]) if percent[0] is None else (found, percent[0])
        sides = [(whole, part), (whole, part / 100)] if percent[0] is None else [(part, whole), (part / 100, whole)]
        return any(equal_values(one, other) for one, other in sides)
    if percent[0] is not None:
        return equal_values(*percent)
    if _names(gold) != _names(found):
        return None
    decimal = bool(gold.atoms(sympy.Float) or found.atoms(sympy.Float))
    if not gold.free_symbols and not found.free_symbols:
        numbers = _fraction(gold), _fraction(found)
        if None not in numbers:
            return _near(*numbers, decimal)  # type: ignore[arg-type]
    values = [(_at(gold, point), _at(found, point)) for point in range(3 if gold.free_symbols else 1)]
    known = [_near(one, other, decimal) for one, other in values if one is not None and other is not None]
    if False in known:
        return False
    return True if len(known) == len(values) else None


def _near(gold: Any, found: Any, decimal: bool) -> bool:
    """Return whether numbers are equal: fractions exactly, others to 30 digits, decimals to `DECIMAL`."""
    exact = isinstance(gold, Fraction) and isinstance(found, Fraction)
    if not decimal:
        return bool(gold == found) if exact else bool(abs(gold - found) <= max(abs(gold), abs(found)) / 10**30)
    return bool(abs(gold - found) <= min(1, abs(gold)) * (DECIMAL if exact else float(DECIMAL)))


def _names(expression: Any) -> set[str]:
    return {symbol.name for symbol in expression.free_symbols}


def _percent(expression: Any) -> Any:
    """Return X of a percentage, which the library reads as an unevaluated X * (1/100); None for anything else."""
    import sympy

    part = sympy.UnevaluatedExpr(sympy.Rational(1, 100))
    if isinstance(expression, sympy.Mul) and len(expression.args) == 2 and expression.args[1] == part:
        return expression.args[0]
    return None


def _exact(expression: Any) -> Any:
    """Return the expression with its decimals as fractions: 0.1 is 1/10."""
    import sympy

    return expression.xreplace({each: sympy.Rational(str(each)) for each in expression.atoms(sympy.Float)})


def _fraction(expression: Any) -> Fraction | None:
    """Return the value of a number that is rational and of moderate size."""
    if size(expression) > LARGEST:
        return None
    value = _exact(expression).doit()
    return Fraction(int(value.p), int(value.q)) if getattr(value, "is_Rational", False) else None


def _at(expression: Any, point: int) -> Any:
    """Return the value to 60 digits with numbers for the letters, None where it has none or is too large."""
    import sympy

    places = {
        symbol: sympy.Rational((-1) ** (number + point) * (31 + 12 * number + 7 * point), 29 + 2 * point + 5 * number)
        for number, symbol in enumerate(sorted(expression.free_symbols, key=str))
    }
    digits = size(expression)
    large = digits > LARGEST
    if digits == math.inf:
        return None
    if large and (expression.has(sympy.Add) or places):
        return None  # a sum of huge numbers has digits that are not computed
    value = _exact(expression).xreplace(places)
    value = (value if large else value.doit()).evalf(_DIGITS)
    return value if value.is_number and value.is_finite and not value.has(sympy.Integral, sympy.Sum) else None


def size(expression: Any) -> float:
    """Return an upper bound on the binary digits of the numbers in an expression, infinity where none is known.

    A letter counts as eight digits. Nothing is evaluated, so that a tower of powers costs no time.
    """
    import sympy

    if expression.is_Integer:
        return float(int(expression).bit_length())
    if expression.is_Rational:
        return float(int(expression.p).bit_length() + int(expression.q).bit_length())
    if not expression.args:
        return 8.0
    parts = [size(each) for each in expression.args]
    most = max(parts)
    if isinstance(expression, sympy.Pow):
        times = 2.0 ** min(parts[1], 64.0) if not expression.exp.is_Rational else abs(float(expression.exp))
        return min(times, 1e18) * max(parts[0], 1.0) if parts[1] <= 64 else math.inf
    if isinstance(expression, (sympy.factorial, sympy.factorial2, sympy.subfactorial, sympy.gamma, sympy.binomial)):
        return most * 2.0**most if most <= 60 else math.inf
    if isinstance(expression, (sympy.Sum, sympy.Product)):
        return math.inf if most > 20 else most * 2.0**most
    return sum(parts)

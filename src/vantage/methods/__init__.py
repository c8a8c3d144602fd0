"""One page a published system. `vantage.method(name)` finds it; `vantage.core` never looks in here."""

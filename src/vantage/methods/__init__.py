"""Published methods, one page each. `vantage.method(name)` finds them; `vantage.core` never imports them."""

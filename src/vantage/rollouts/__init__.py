"""How decisions are gathered."""

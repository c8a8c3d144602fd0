"""Operations: routing, scheduling, inventory."""

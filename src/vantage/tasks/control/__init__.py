"""Control: Gymnasium environments."""

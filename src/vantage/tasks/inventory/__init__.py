"""Inventory: stores, warehouses and machines under random demand, as batched differentiable simulators."""

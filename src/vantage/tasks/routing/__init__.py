"""Routing: travelling salesman and vehicle routing problems, random or from TSPLIB files."""

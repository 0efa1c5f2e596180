"""The generators need torch and diffusers, so doctest collection must not import them."""

collect_ignore = ["generate.py", "generate_grids.py", "generate_lcm.py"]

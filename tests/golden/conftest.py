"""generate.py needs torch and diffusers, so doctest collection must not import it."""

collect_ignore = ["generate.py", "generate_lcm.py"]

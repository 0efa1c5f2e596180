"""The generators need torch and the references, so doctest collection must not import them."""

collect_ignore_glob = ["generate*.py"]

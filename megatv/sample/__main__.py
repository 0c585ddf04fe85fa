"""`python -m megatv.sample`: see `megatv.sample.cli`."""

from megatv.sample.cli import command

if __name__ == "__main__":
    command()

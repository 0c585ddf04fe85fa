"""`python -m megatv.studio`: see `megatv.studio.cli`."""

from megatv.studio.cli import command

if __name__ == "__main__":
    command()

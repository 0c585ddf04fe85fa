"""`python -m megatv.eval.human`: see `megatv.eval.human.cli`."""

from megatv.eval.human.cli import command

if __name__ == "__main__":
    command()

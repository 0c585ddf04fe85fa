"""`python -m megatv.sample`: see `megatv.sample.cli`."""

from megatv.log import main_guard
from megatv.sample.cli import main

if __name__ == "__main__":
    main_guard(main)

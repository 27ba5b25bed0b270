"""`python -m heptad` is `heptad`."""

from heptad.cli import main

if __name__ == "__main__":
    raise SystemExit(main())

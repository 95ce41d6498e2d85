"""`python -m finepref` is `finepref`."""

from finepref.cli import main

if __name__ == "__main__":
    main()

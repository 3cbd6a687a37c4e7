"""`python -m capfilt` is `capfilt`."""

from capfilt.cli.main import main

if __name__ == "__main__":
    main()

"""Start of the command."""

from training.check.command import main

if __name__ == "__main__":
    main()

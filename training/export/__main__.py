"""Start of the command."""

from training.export.command import main

if __name__ == "__main__":
    main()

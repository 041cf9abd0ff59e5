"""Start of the command."""

from training.sharpen.command import main

if __name__ == "__main__":
    main()

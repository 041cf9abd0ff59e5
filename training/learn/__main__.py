"""Start of the command."""

from training.learn.command import main

if __name__ == "__main__":
    main()
